"""Thin sweeper and launcher plugins, for every Hydra program of an environment imports them; `runner.sweeps` does the work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class GridSweeper(Sweeper):
    """Runs every combination of the given values."""

    def __init__(self, max_batch_size: int | None, params: dict[str, str] | None) -> None:
        self.max_batch_size, self.params = max_batch_size, params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the launcher; its jobs run this package's task, which returns outcomes as plain data."""
        from runner.sweeps.sweeper import sweep

        self.new_sweep = sweep(hydra_context, config)

    def sweep(self, arguments: list[str]) -> Any:
        """Launch all jobs, and return their outcomes."""
        from runner.sweeps.sweeper import grid

        return grid(self.new_sweep, arguments, self.params, self.max_batch_size)


class OptunaSweeper(Sweeper):
    """Runs trials whose values Optuna samples, based on the results of earlier trials."""

    def __init__(self, **keys: Any) -> None:
        self.keys = keys

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the launcher; its jobs run this package's task, which returns outcomes as plain data."""
        from runner.sweeps.sweeper import sweep

        self.new_sweep = sweep(hydra_context, config)

    def sweep(self, arguments: list[str]) -> Any:
        """Launch the jobs of all trials, and return their outcomes."""
        from runner.sweeps.optuna.study import search

        return search(self.new_sweep, arguments, self.keys)


class FusedLauncher(Launcher):
    """Runs jobs that differ only in numbers as lanes of one compiled program, and all other jobs one by one."""

    fuses = True

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store the context, the task function and the configuration of the jobs."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[Any]:
        """Run jobs, and return a JobReturn for each."""
        from runner.sweeps.sweeper import fused

        return fused(self.hydra_context, self.task_function, self.config, job_overrides, initial_job_idx)


ConfigStore.instance().store(
    group="hydra/launcher",
    name="fused",
    node={"_target_": "hydra_plugins.runner_sweeps.FusedLauncher"},
    provider="runner",
)
