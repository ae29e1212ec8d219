"""The contract between a run and its tracker: the run's description, its recorder, and how it ended."""

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

# The default folder of the outbox.
PENDING = Path("outputs/pending")
# Tags of a run's end. `recording` marks a run that is only partly in the store.
ENDING = ("ending", "stopped_by", "first_nonfinite_step", "error", "end_reason", "recording")


@dataclass(frozen=True)
class About:
    """The description of a run, recorded once before its first row."""

    folder: Path  # where the run's files are written before they are logged
    name: str  # the run's name if the user gives none
    params: Mapping[str, str]
    tags: Mapping[str, str]
    config: str  # resolved, YAML
    resume: bool = True  # continue an interrupted run with the same config digest


@dataclass(frozen=True)
class Recorder:
    """What a run records with: `record(rows)` takes its rows in order, `finish(tags, metrics)` its end and its result."""

    record: Callable[[Trace], None]
    finish: Callable[[Mapping[str, str], Mapping[str, float]], None]
    run_id: str | None = None
    experiment_id: str | None = None
    uri: str | None = None
    report: Callable[[Drawing], None] = lambda drawing: None  # draws a report, and stores the pictures with the run
    folder: Path | None = None  # of the run's files; that of the interrupted run if one is continued
    recorded: int = 0  # rows before this step are recorded already, and are not recorded again
    rows: Callable[[], Iterator[Trace]] = lambda: iter(())  # yields the rows that are recorded


def fields_of(about: About) -> dict[str, Any]:
    """Return a run's description as the fields of a message."""
    return {**vars(about), "folder": str(about.folder)}


def about_of(fields: Mapping[str, Any]) -> About:
    """Return a run's description from the fields of a message."""
    values: dict[str, Any] = {**fields, "folder": Path(fields["folder"])}
    return About(**values)


def tags_of(about: About, run_key: str, host: str | None = None) -> dict[str, str]:
    """Return a run's first tags, among them the folder of its files, and its key, by which a retry finds the run."""
    folder = str(started.absolute(about.folder))
    return {**about.tags, "run_key": run_key, "folder": folder, "host": host or socket.gethostname()}


def named(keys: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the tracking keys with masked secrets in `name` and `experiment`.

    Only the process that composed the configuration knows the secrets.
    """
    return {**keys, **{key: secrets.masked(keys[key]) for key in ("name", "experiment") if isinstance(keys.get(key), str)}}


class Abandoned(Exception):
    """A run that ended without `finish`: the status that MLflow shows, and tags that say why."""

    def __init__(self, status: str, tags: Mapping[str, str]) -> None:
        super().__init__(status)
        self.status, self.tags = status, tags


class Tracker(Protocol):
    """Where rows go. A node of `conf/tracking` names the class, and its keys are the constructor's arguments."""

    def prepare(self, *, draws: bool) -> None:
        """Start slow work, such as imports, before TensorFlow is imported. `draws`: whether a run will have pictures."""

    def run(self, about: About) -> AbstractContextManager[Recorder]:
        """Return the recorder of one run; an exception within ends that run as failed."""
        ...

    def sweep(self) -> Any:
        """Return the recorder of a whole sweep, or None if the tracker records runs one by one only."""


class Nothing:
    """A tracker that records nothing."""

    def prepare(self, *, draws: bool) -> None:
        """Do nothing."""

    @contextmanager
    def run(self, about: About) -> Iterator[Recorder]:
        """Yield a recorder that drops all rows."""
        yield Recorder(lambda rows: None, lambda tags, metrics: None)

    def sweep(self) -> None:
        """Return None: no sweep is recorded."""


class OneByOne:
    """Records runs by a function: `opened(about)` returns a context manager that gives a Recorder."""

    def __init__(self, opened: Callable[[About], AbstractContextManager[Recorder]]) -> None:
        self.opened = opened

    def prepare(self, *, draws: bool) -> None:
        """Open nothing."""

    def run(self, about: About) -> AbstractContextManager[Recorder]:
        """Return the recorder of one run."""
        return self.opened(about)

    def sweep(self) -> None:
        """Record no sweep."""


def check(every: int, full_loss_every: int, max_unsent: float) -> None:
    """Raise UserError for a key that is out of its range."""
    for key, value, usual in (("every", every, 1), ("full_loss_every", full_loss_every, 100)):
        if value < 1:
            raise UserError(f"tracking.{key} must be 1 or more, got {value}; set it with tracking.{key}={usual}")
    if not max_unsent > 0:
        text = f"tracking.max_unsent must be a positive number of GiB, got {max_unsent}"
        raise UserError(f"{text}; set it with tracking.max_unsent=1")


def clock() -> int:
    """Return the current time in ms since 1970."""
    return time.time_ns() // 1_000_000


def abandoned(error: BaseException) -> tuple[str, Mapping[str, str]]:
    """Return the status and the tags of a run that ended with this exception."""
    if isinstance(error, Abandoned):
        return error.status, error.tags
    status = "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED"
    return status, {"error": secrets.masked(first_line(error))[:5000]}


def status_of(tags: Mapping[str, str]) -> str:
    """Return the status that MLflow shows for a run with these tags of its end."""
    return "KILLED" if tags["ending"] == Ending.INTERRUPTED else "FINISHED"
