"""Thin launcher plugins for workers and clusters; `runner.sweeps.launchers` does the work.

They are thin because every Hydra program of an environment imports them.

They run jobs as the published launchers do, but a published launcher gives up at the first job whose process dies. On a cluster
the other jobs would continue unnoticed, and would be started twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class Remembering(Launcher):
    """A launcher that stores its settings and the arguments of `setup`; `needs` is the published plugin that it uses."""

    needs: str
    # Whether the jobs are shared out among workers.
    shares = True
    # Whether the other processes survive if one process dies.
    apart = True
    # Maximum number of jobs in a pack after a pack was lost; None: no limit.
    largest: int | None = None

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    @property
    def fuses(self) -> bool:
        """Whether jobs that differ only in numbers may run as one program."""
        return self.config.sweep.pack != 1

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store the arguments and check the settings; raises ModuleNotFoundError without the extra, before any job starts."""
        if find_spec(self.needs) is None:
            raise ModuleNotFoundError(f"No module named {self.needs!r}", name=self.needs)
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config
        self.check()

    def check(self) -> None:
        """Raise UserError for invalid settings."""


class JoblibLauncher(Remembering):
    """Runs jobs in processes of this machine, by joblib."""

    needs = "hydra_plugins.hydra_joblib_launcher"
    apart = False

    def check(self) -> None:
        """Raise UserError for invalid settings."""
        from runner.sweeps.launchers import check_workers

        check_workers(self.settings)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[Any]:
        """Run jobs, and return a JobReturn for each."""
        from runner.sweeps.launchers import joblib

        return joblib(self, job_overrides, initial_job_idx)


class RayLauncher(Remembering):
    """Runs jobs on a Ray cluster."""

    needs = "hydra_plugins.hydra_ray_launcher"

    def check(self) -> None:
        """Raise UserError for invalid settings."""
        from runner.sweeps.launchers import ray_settings

        ray_settings(self)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[Any]:
        """Run jobs, and return a JobReturn for each."""
        from runner.sweeps.launchers import ray

        return ray(self, job_overrides, initial_job_idx)


class LocalLauncher(Remembering):
    """Runs jobs on this machine by submitit, in the way of a cluster."""

    needs = "hydra_plugins.hydra_submitit_launcher"

    def check(self) -> None:
        """Raise UserError for invalid settings."""
        from runner.sweeps.launchers import submitit_settings

        submitit_settings(self)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[Any]:
        """Run jobs, and return a JobReturn for each."""
        from runner.sweeps.launchers import submitit

        return submitit(self, "local", job_overrides, initial_job_idx)


class SlurmLauncher(Remembering):
    """Runs jobs on a Slurm cluster by submitit."""

    needs = "hydra_plugins.hydra_submitit_launcher"

    def check(self) -> None:
        """Raise UserError for invalid settings."""
        from runner.sweeps.launchers import submitit_settings

        submitit_settings(self)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[Any]:
        """Run jobs, and return a JobReturn for each."""
        from runner.sweeps.launchers import submitit

        return submitit(self, "slurm", job_overrides, initial_job_idx)
