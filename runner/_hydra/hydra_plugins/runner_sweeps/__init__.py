"""The plugins that Hydra loads: shells, for every Hydra program of an environment imports them; the work is the package's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class GridSweeper(Sweeper):
    """Every combination of the values that a sweep names."""

    def __init__(self, max_batch_size: int | None, params: dict[str, str] | None) -> None:
        self.max_batch_size, self.params = max_batch_size, params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the launcher; its jobs run the package's own task, whose outcomes are data."""
        from runner.sweeps.sweeper import sweep

        self.new_sweep = sweep(hydra_context, config)

    def sweep(self, arguments: list[str]) -> Any:
        """Launch all jobs, and return their outcomes."""
        from runner.sweeps.sweeper import grid

        return grid(self.new_sweep, arguments, self.params, self.max_batch_size)


class OptunaSweeper(Sweeper):
    """Values that Optuna chooses from what those before came to."""

    def __init__(self, **keys: Any) -> None:
        self.keys = keys

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the launcher; its jobs run the package's own task, whose outcomes are data."""
        from runner.sweeps.sweeper import sweep

        self.new_sweep = sweep(hydra_context, config)

    def sweep(self, arguments: list[str]) -> Any:
        """Launch all trials' jobs, and return their outcomes."""
        from runner.sweeps.optuna.study import search

        return search(self.new_sweep, arguments, self.keys)


class FusedLauncher(Launcher):
    """Jobs that differ in numbers alone run as rows of one compiled program, all others one by one."""

    fuses = True

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Remember what the jobs are made of."""
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
