"""What an interrupted group goes on from, and which runs its jobs are: of each group, a folder below `tracking.pending`.

A file says which of its jobs have yet to be recorded, and beside it are checkpoints as a single run has them.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from runner import many, spool
from runner.checkpoints import ROWS, STATE, Damaged, fill, newest, own, parts, put
from runner.errors import UserError, first_line
from runner.fused import Group, Rows, State
from runner.loop import Ending, Stop
from runner.programs import Program

GROUPS, FILE = "groups", "group.json"


class Run(NamedTuple):
    """The run that a job is or will be."""

    identity: str
    key: str
    folder: str | None = None  # where its files are, once it has begun to be recorded


class Checkpoints:
    """The checkpoints of one group; without a folder there are none.

    They are saved each time that so many seconds have passed (None: only when told), and nothing is written before.
    """

    def __init__(
        self,
        folder: Path | None,
        runs: Sequence[Run],
        columns: Sequence[str],
        every: float | None,
        lock: spool.Lock | None = None,
        resumed: int = 0,
    ) -> None:
        self.folder, self.runs, self.columns, self.every = folder, list(runs), tuple(columns), every
        self.lock, self.resumed = lock, resumed
        self.saved, self.step = time.monotonic(), 0

    @property
    def identities(self) -> list[str]:
        """Return those of the jobs, in their order."""
        return [run.identity for run in self.runs]

    def save(self, at: State, program: Program, now: bool) -> None:
        """Save where the group is, if that is due, or `now`; it goes on where that cannot be done."""
        due = now or (self.every is not None and time.monotonic() - self.saved >= self.every)
        variables = parts(program)
        if self.folder is None or variables is None or not due or at.taken == self.step:
            return
        with self.told():
            self.write()
            put(self.folder, at.taken, variables, lambda new: write(at, self.identities, new))
        self.saved, self.step = time.monotonic(), at.taken

    @contextmanager
    def told(self) -> Iterator[None]:
        """Tell of what cannot be written, and go on."""
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            text = "checkpoint: %s cannot be written (%s); the jobs go on without"
            logging.getLogger(__name__).warning(text, self.folder, first_line(error)[:200])

    def write(self) -> None:
        """Write which jobs these are, and keep other processes away from them."""
        assert self.folder is not None
        if self.lock is None:
            self.folder.mkdir(mode=0o700, parents=True)
            self.lock = spool.Lock(self.folder, "run")
        fields = {"columns": self.columns, "resumed": self.resumed, "runs": self.runs}
        new = self.folder / f"{FILE}.tmp"
        new.write_text(json.dumps(fields))
        new.replace(self.folder / FILE)

    def restore(self, group: Group) -> tuple[State, Callable[[Program], None]] | None:
        """Return where this group was, and what gives its program the variables; None where it is to begin again.

        Raises UserError where there were checkpoints and none is whole.
        """
        assert self.folder is not None
        rules, x0 = group.jobs[0].rules, group.jobs[0].x0
        if (found := newest(self.folder, lambda path: read(path, self.identities, rules.max_iterations + 1, x0))) is None:
            return None
        folder, at = found
        self.step = at.taken

        def give(program: Program) -> None:
            program.execution.restart()
            fill(parts(program) or {}, folder)

        return at, give

    def recording(self, folders: Sequence[Path]) -> None:
        """Note that the jobs are about to be recorded, each in its folder, or where an earlier attempt has begun to."""
        pairs = zip(self.runs, folders, strict=True)
        self.runs = [run if run.folder else run._replace(folder=str(folder)) for run, folder in pairs]
        if self.lock is not None:
            with self.told():
                self.write()

    def recorded(self, interrupted: Collection[str]) -> None:
        """Note that all are recorded, and keep what those are continued from that a signal has ended."""
        self.runs = [run for run in self.runs if run.identity in interrupted]
        if self.runs and self.folder is not None:
            with self.told():
                self.write()
        else:
            self.remove()

    def remove(self) -> None:
        """Remove all: the jobs have their results, or will not be continued."""
        if self.folder is None:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        for parent in (self.folder.parent, self.folder.parent.parent):
            with suppress(OSError):
                parent.rmdir()
        self.close()

    def close(self) -> None:
        """Let other processes have what is left."""
        if self.lock is not None:
            self.lock.release()
            self.lock = None


def new(pending: Path | None, identities: Sequence[str], columns: Sequence[str], every: float | None) -> Checkpoints:
    """Return the checkpoints, none as yet, of a new group; there will be none without a folder for them."""
    runs = [Run(identity, key) for identity, key in zip(identities, many.ids(len(identities)), strict=True)]
    # Which of two equal jobs is which nobody could tell later.
    alike = len({*identities}) < len(identities)
    return Checkpoints(None if pending is None or alike else place(pending), runs, columns, every)


def place(pending: Path) -> Path:
    """Return a new folder for a group."""
    return pending.absolute() / GROUPS / uuid.uuid4().hex


def interrupted(pending: Path, wanted: Collection[str], every: float | None) -> Iterator[Checkpoints]:
    """Yield the interrupted groups that some of these jobs belong to, without other jobs, each held for this process.

    Raises UserError where another process is continuing one.
    """
    for folder in sorted((pending.absolute() / GROUPS).glob("*")):
        if (found := taken(folder, {*wanted}, every)) is not None:
            yield found


def taken(folder: Path, wanted: Collection[str], every: float | None) -> Checkpoints | None:
    """Take from a group those of the wanted jobs that it has; returns None where there are none, or it is not interrupted."""
    if not any(run.identity in wanted for run in runs_of(folder)):
        return None
    own(folder)
    try:
        # Whoever takes other jobs of this group waits for a moment.
        lock = spool.Lock(folder, "sending", spool.PATIENCE)
    except spool.Held as held:
        if held.holder.get("role") != "continued" or not any(run.identity in wanted for run in runs_of(folder)):
            return None
        holder = f"process {held.holder['pid']} on {held.holder['host']}"
        raise UserError(f"jobs of this sweep are being continued by {holder}; wait for it, or set resume=false") from held
    fields = fields_of(folder)
    runs = runs_of(folder)
    mine, rest = ([run for run in runs if (run.identity in wanted) == ours] for ours in (True, False))
    if not mine:
        lock.release()
        return None
    found = Checkpoints(folder, mine, fields["columns"], every, lock, fields["resumed"] + 1)
    if rest:
        found.folder, found.lock = place(folder.parents[1]), None
        shutil.copytree(folder, found.folder, ignore=shutil.ignore_patterns(spool.LOCK, FILE))
        found.lock = spool.Lock(found.folder, "continued")
        found.write()
        others = Checkpoints(folder, rest, fields["columns"], every, lock, fields["resumed"])
        others.write()
        others.close()
    else:
        lock.become("continued")
    return found


def fields_of(folder: Path) -> dict[str, Any]:
    """Return what a group's file says; nothing where there is none, or it is not to be read."""
    try:
        return dict(json.loads((folder / FILE).read_text()))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        text = "checkpoint: %s cannot be read (%s); its group is not continued"
        logging.getLogger(__name__).warning(text, folder / FILE, first_line(error)[:100])
        return {}


def runs_of(folder: Path) -> list[Run]:
    """Return the runs of a group that have yet to be recorded."""
    return [Run(*each) for each in fields_of(folder).get("runs", ())]


def write(at: State, identities: Sequence[str], folder: Path) -> None:
    """Write a group's part of a checkpoint."""
    reached = max([at.taken, *(stop.step + 1 for stop in at.stops.values())])
    with (folder / ROWS).open("wb") as file:
        arrays = {name: getattr(at.rows, name)[:, :reached] for name in ("x", "loss", "gradient")}
        np.savez(file, allow_pickle=False, live=at.live, lane=at.lane, **arrays)
    stops = {job: list(vars(stop).values()) for job, stop in at.stops.items()}
    fields = {"taken": at.taken, "lanes": at.lanes, "seconds": at.seconds, "identities": identities, "stops": stops}
    (folder / STATE).write_text(json.dumps(fields))


def read(folder: Path, identities: Sequence[str], length: int, x0: np.ndarray) -> State:
    """Return a group's part of a checkpoint, of these of its jobs and with room for so many rows."""
    fields = json.loads((folder / STATE).read_text())
    at = {identity: job for job, identity in enumerate(fields["identities"])}
    if not {*identities} <= at.keys():
        raise Damaged(f"{folder / STATE} is of other jobs")
    jobs = [at[identity] for identity in identities]
    rows = Rows(len(jobs), length, x0)
    with np.load(folder / ROWS, allow_pickle=False) as file:
        live, lane = file["live"], file["lane"]
        for name in ("x", "loss", "gradient"):
            getattr(rows, name)[:, : file[name].shape[1]] = file[name][jobs]
    lanes = dict(zip(live.tolist(), lane.tolist(), strict=True))
    pairs = [(new, lanes[job]) for new, job in enumerate(jobs) if job in lanes]
    stops = {}
    for new, job in enumerate(jobs):
        if str(job) in fields["stops"]:
            step, ending, *rest = fields["stops"][str(job)]
            stops[new] = Stop(step, Ending(ending), *rest)
    ours, theirs = (np.array(each, int) for each in (zip(*pairs, strict=True) if pairs else ((), ())))
    return State(rows, ours, theirs, fields["lanes"], fields["taken"], stops, fields["seconds"])
