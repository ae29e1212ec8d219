"""Launchers for clusters, as shells: every Hydra program of an environment imports them; the work is in `runner.clusters`.

The published ones give up at the first job whose process dies, while the others' go on, unseen, and would be started twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class Remembering(Launcher):
    """Remembers its settings, and what the jobs are made of."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Remember what the jobs are made of."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[Any]:
        """Run jobs, and return a JobReturn for each."""
        raise NotImplementedError


class RayLauncher(Remembering):
    """Jobs on a Ray cluster."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[Any]:
        """Run jobs, and return a JobReturn for each."""
        from runner.clusters import ray

        return ray(self, job_overrides, initial_job_idx)


class SubmititLauncher(Remembering):
    """Jobs on a Slurm cluster, or on this machine as there."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[Any]:
        """Run jobs, and return a JobReturn for each."""
        from runner.clusters import submitit

        return submitit(self, job_overrides, initial_job_idx)
