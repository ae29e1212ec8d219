"""What a run and its tracker agree upon: what is said of a run, its recorder, and how it ended."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from runner.errors import UserError, first_line
from runner.loop import Ending
from runner.pictures.data import Drawing
from runner.security import secrets
from runner.system import started
from runner.trace import Trace

# The usual place of what is pending.
PENDING = Path("outputs/pending")
# Tags of a run's end, and, `recording`, of one that is not in the store as a whole.
ENDING = ("ending", "stopped_by", "first_nonfinite_step", "error", "end_reason", "recording")


@dataclass(frozen=True)
class About:
    """What is said of a run once, before its first row."""

    folder: Path  # where its files are written before they are logged
    name: str  # the run's, where the user gives no other
    params: Mapping[str, str]
    tags: Mapping[str, str]
    config: str  # resolved, YAML
    resume: bool = True  # an interrupted run of the same identity is continued


@dataclass(frozen=True)
class Recorder:
    """`record(rows)` takes a run's rows in order; `finish(tags, metrics)` how it ended and what it came to."""

    record: Callable[[Trace], None]
    finish: Callable[[Mapping[str, str], Mapping[str, float]], None]
    run_id: str | None = None
    experiment_id: str | None = None
    uri: str | None = None
    report: Callable[[Drawing], None] = lambda drawing: None  # draws it, and keeps the pictures with the run
    folder: Path | None = None  # where the run's files are: of the interrupted run where that is continued
    recorded: int = 0  # rows of the steps before this one are there already, and are not recorded again
    rows: Callable[[], Iterator[Trace]] = lambda: iter(())  # those that were recorded


def fields_of(about: About) -> dict[str, Any]:
    """Return what is said of a run as a message's fields."""
    return {**vars(about), "folder": str(about.folder)}


def about_of(fields: Mapping[str, Any]) -> About:
    """Return what a message's fields say of a run."""
    values: dict[str, Any] = {**fields, "folder": Path(fields["folder"])}
    return About(**values)


def tags_of(about: About, run_key: str, host: str | None = None) -> dict[str, str]:
    """Return a run's first tags: with its key, by which it is found before it is made again, and where its files are."""
    folder = str(started.absolute(about.folder))
    return {**about.tags, "run_key": run_key, "folder": folder, "host": host or socket.gethostname()}


def named(keys: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the tracking group's keys with no secret in a name, which only the process that composed it can tell."""
    return {**keys, **{key: secrets.masked(keys[key]) for key in ("name", "experiment") if isinstance(keys.get(key), str)}}


class Abandoned(Exception):
    """A run that ended without `finish`: the status that MLflow shows, and tags that say why."""

    def __init__(self, status: str, tags: Mapping[str, str]) -> None:
        super().__init__(status)
        self.status, self.tags = status, tags


class Tracker(Protocol):
    """Where rows go, as a node of `conf/tracking` names it; its keys are the arguments of its making."""

    def prepare(self, *, draws: bool) -> None:
        """Begin to open what takes long, before TensorFlow is imported; `draws` tells whether a run will have pictures."""

    def run(self, about: About) -> AbstractContextManager[Recorder]:
        """Return the recorder of one run; an exception within ends that run as failed."""
        ...

    def sweep(self) -> Any:
        """Return the recorder of a whole sweep, or None where runs are recorded one by one alone."""


class Nothing:
    """Records nothing."""

    def prepare(self, *, draws: bool) -> None:
        """Open nothing."""

    @contextmanager
    def run(self, about: About) -> Iterator[Recorder]:
        """Give a recorder that drops all rows."""
        yield Recorder(lambda rows: None, lambda tags, metrics: None)

    def sweep(self) -> None:
        """Record no sweep."""


class OneByOne(Nothing):
    """Records by a function of a run: `opened(about)` is a context manager that gives a Recorder."""

    def __init__(self, opened: Callable[[About], AbstractContextManager[Recorder]]) -> None:
        self.run = opened


def check(every: int, full_loss_every: int, max_unsent: float) -> None:
    """Raise UserError where a key is out of its range."""
    for key, value, usual in (("every", every, 1), ("full_loss_every", full_loss_every, 100)):
        if value < 1:
            raise UserError(f"tracking.{key} must be 1 or more, got {value}; set it with tracking.{key}={usual}")
    if not max_unsent > 0:
        text = f"tracking.max_unsent must be a positive number of GiB, got {max_unsent}"
        raise UserError(f"{text}; set it with tracking.max_unsent=1")


def clock() -> int:
    """Return the time, in ms since 1970."""
    return time.time_ns() // 1_000_000


def abandoned(error: BaseException) -> tuple[str, Mapping[str, str]]:
    """Return the status and the tags of a run that this exception ended."""
    if isinstance(error, Abandoned):
        return error.status, error.tags
    status = "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED"
    return status, {"error": secrets.masked(first_line(error))[:5000]}


def status_of(tags: Mapping[str, str]) -> str:
    """Return the status that MLflow shows for a run that ended so."""
    return "KILLED" if tags["ending"] == Ending.INTERRUPTED else "FINISHED"
