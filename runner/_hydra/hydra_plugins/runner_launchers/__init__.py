"""Launchers for clusters, as shells: every Hydra program of an environment imports them.

Their work is in `runner.sweeps.launchers`.

They run jobs as the published ones do, which give up at the first job whose process dies: on a cluster the others' would go
on, unseen, and be started twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class Remembering(Launcher):
    """Remembers its settings, and what the jobs are made of; `needs` is the published plugin that it works with."""

    needs: str
    # The jobs, among workers.
    shares = True
    # Whether a process that dies takes no other along.
    apart = True
    # Jobs in a task at the most, where it is not as ever.
    largest: int | None = None

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    @property
    def fuses(self) -> bool:
        """Whether jobs that differ in numbers alone may run as one program."""
        return self.config.sweep.pack != 1

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Remember what the jobs are made of; raises ImportError without the extra, before anything is begun."""
        if find_spec(self.needs) is None:
            raise ModuleNotFoundError(f"No module named {self.needs!r}", name=self.needs)
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config
        self.check()

    def check(self) -> None:
        """Raise UserError for settings that cannot be."""


class JoblibLauncher(Remembering):
    """Jobs in processes of this machine."""

    needs = "hydra_plugins.hydra_joblib_launcher"
    apart = False

    def check(self) -> None:
        """Raise UserError for settings that cannot be."""
        from runner.sweeps.launchers import check_workers

        check_workers(self.settings)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[Any]:
        """Run jobs, and return a JobReturn for each."""
        from runner.sweeps.launchers import joblib

        return joblib(self, job_overrides, initial_job_idx)


class RayLauncher(Remembering):
    """Jobs on a Ray cluster."""

    needs = "hydra_plugins.hydra_ray_launcher"

    def check(self) -> None:
        """Raise UserError for settings that cannot be."""
        from runner.sweeps.launchers import ray_settings

        ray_settings(self)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[Any]:
        """Run jobs, and return a JobReturn for each."""
        from runner.sweeps.launchers import ray

        return ray(self, job_overrides, initial_job_idx)


class LocalLauncher(Remembering):
    """Jobs on this machine, as submitit starts them on a cluster."""

    needs = "hydra_plugins.hydra_submitit_launcher"

    def check(self) -> None:
        """Raise UserError for settings that cannot be."""
        from runner.sweeps.launchers import submitit_settings

        submitit_settings(self)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[Any]:
        """Run jobs, and return a JobReturn for each."""
        from runner.sweeps.launchers import submitit

        return submitit(self, "local", job_overrides, initial_job_idx)


class SlurmLauncher(Remembering):
    """Jobs on a Slurm cluster."""

    needs = "hydra_plugins.hydra_submitit_launcher"

    def check(self) -> None:
        """Raise UserError for settings that cannot be."""
        from runner.sweeps.launchers import submitit_settings

        submitit_settings(self)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[Any]:
        """Run jobs, and return a JobReturn for each."""
        from runner.sweeps.launchers import submitit

        return submitit(self, "slurm", job_overrides, initial_job_idx)
