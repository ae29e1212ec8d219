"""The work of the Hydra plugins: make a sweep, launch a grid, and run jobs that differ only in numbers as one program."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from runner.cli import job
from runner.cli.job import SIGNALS
from runner.config import grammar
from runner.errors import UserError
from runner.security import secrets, trust
from runner.sweeps import composer
from runner.sweeps.sweep import Sweep
from runner.sweeps.task import Ended, Outcome, Task
from runner.system import folders, quiet, started, startup


def sweep(context: HydraContext, master: DictConfig) -> Callable[[Sequence[str]], Sweep]:
    """Return a function that makes a Sweep from the user's overrides, with the launcher that the configuration names.

    Raises UserError for an invalid `sweep.pack`.
    """
    if (size := master.sweep.pack) is not None and size < 1:
        raise UserError(f"sweep.pack must be 1 or more, got {size}; leave it out to share the jobs out among the workers")
    folder = Path(master.hydra.sweep.dir)
    trust.folder("hydra.sweep.dir", folder)
    # An earlier or a concurrent sweep may use the same folder.
    task = Task(folder / "outcomes" / uuid.uuid4().hex[:8], master.sweep.fail_fast)
    launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=master)

    def make(overrides: Sequence[str]) -> Sweep:
        folders.claim(folder, "set hydra.sweep.dir=another folder, one that is new or empty")
        OmegaConf.save(secrets.unresolved(master), folder / "multirun.yaml")
        return Sweep(launcher, task, context.config_loader, master, overrides, secrets.tell)

    return make


def grid(
    make: Callable[[Sequence[str]], Sweep], arguments: Sequence[str], params: Mapping[str, str], size: int | None
) -> list[Outcome]:
    """Launch every combination of the values that `arguments` and `params` give, `size` jobs at a time; return the outcomes.

    `params` come from a configuration file. `size` None launches all jobs at once.
    """
    made = make(arguments)
    jobs = grammar.expand(parsed(made, params, arguments), made.settings.zip)
    if size is not None and size < 1:
        raise UserError(f"hydra.sweeper.max_batch_size must be 1 or more, got {size}; leave it out to launch all jobs at once")
    made.varies(key for key, values in differing(jobs) if values > 1)
    batches = [jobs] if size is None else [jobs[i : i + size] for i in range(0, len(jobs), size)]
    with ending(made):
        for batch in batches:
            made.launch(batch)
    return made.outcomes


def differing(jobs: Sequence[Sequence[str]]) -> Iterator[tuple[str, int]]:
    """Yield each key of the jobs' overrides with its number of different values."""
    values: dict[str, set[str]] = {}
    for key, _, value in (override.partition("=") for overrides in jobs for override in overrides):
        values.setdefault(key, set()).add(value)
    yield from ((key, len(each)) for key, each in values.items())


def parsed(made: Sweep, params: Mapping[str, str], arguments: Sequence[str]) -> list[Override]:
    """Return the overrides of a file's params and then of the command line, which take precedence."""
    typed = [f"{key}={value}" for key, value in params.items()] + list(arguments)
    # The parser needs the config loader to expand glob(*).
    return OverridesParser.create(config_loader=made.composed.loader).parse_overrides(typed)


@contextmanager
def ending(made: Sweep) -> Iterator[None]:
    """Close the sweep at the end of this block, also after an error.

    Raises UserError if a job failed. Raises SystemExit with the exit code of the signal if a signal ended the sweep or a job.
    """
    stopped: BaseException | None = None
    try:
        yield
    except Ended as ended:
        stopped = ended
    except BaseException as error:
        stopped = error
        raise
    finally:
        made.close(stopped)
    # A sweep continues when a job in another process is interrupted. A failed job takes precedence over an interrupted one.
    interrupted = [each for each in made.outcomes if each.interrupted]
    if isinstance(stopped, Ended) and stopped.outcome.interrupted:
        sys.exit(SIGNALS[str(stopped.outcome.stopped_by)])
    if failed := sum(each.failed for each in made.outcomes):
        raise UserError(f"{failed} of {len(made.outcomes)} jobs failed, as told above")
    if interrupted:
        sys.exit(SIGNALS[str(interrupted[0].stopped_by)])


def one_by_one(context: HydraContext, task: Any, master: DictConfig) -> BasicLauncher:
    """Return Hydra's basic launcher, which runs jobs one after another in this process."""
    launcher = BasicLauncher()
    launcher.setup(hydra_context=context, task_function=task, config=master)
    return launcher


def fused(context: HydraContext, task: Any, master: DictConfig, batch: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
    """Run jobs that differ only in numbers as lanes of one program, and all other jobs one by one.

    A task function that is not this package's Task runs one by one.
    """
    if not isinstance(task, Task):
        return list(one_by_one(context, task, master).launch(batch, first))
    return numbered(context, task, master, batch, range(first, first + len(batch)))


def numbered(
    context: HydraContext, task: Task, master: DictConfig, batch: Sequence[Sequence[str]], numbers: Sequence[int]
) -> list[JobReturn]:
    """Run jobs with these job numbers, as lanes of one program where possible; see `fused`."""
    alone = one_by_one(context, task, master)
    job.prepare(task.composed(batch[0]).cfg.tracking)
    with quiet.tensorflow(), startup.without_optional_imports():
        from runner.sweeps import fusing

    returns: dict[int, JobReturn] = {}
    for start in range(0, len(batch), composer.KEPT):
        jobs = [task.composed(each) for each in batch[start : start + composer.KEPT]]
        for indices, outcomes in fusing.outcomes(task, jobs, Path(master.hydra.sweep.dir), numbers[start:]):
            started.come_back()
            for position, index in enumerate(indices):
                at = start + index
                if outcomes is None:
                    (returns[at],) = alone.launch([batch[at]], numbers[at])
                else:
                    done = {"status": JobStatus.COMPLETED, "_return_value": outcomes[position]}
                    returns[at] = JobReturn(jobs[index].overrides, **done)
    return [returns[index] for index in range(len(batch))]
