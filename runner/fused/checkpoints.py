"""Checkpoints of a group of jobs: an interrupted group resumes from them. Beside them, a manifest lists the group's jobs."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import compress
from pathlib import Path

import numpy as np
import tensorflow as tf

from runner.checkpoints import ROWS, STATE, Damaged, fill, newest, own, parts, put
from runner.errors import UserError, first_line
from runner.executions.cache import Program
from runner.fused import manifest
from runner.fused.lockstep import Group, Rows, State
from runner.fused.manifest import Jobs, Run
from runner.loop import Ending, Stop
from runner.tracking import journal
from runner.tracking.store import bulk_runs


class Checkpoints:
    """The checkpoints of one group; without a folder none are saved.

    A checkpoint is saved every `every` seconds (None: only on a signal). Before the first one, nothing is written.
    """

    def __init__(self, folder: Path | None, jobs: Jobs, every: float | None, lock: journal.Lock | None = None) -> None:
        self.folder, self.jobs, self.every, self.lock = folder, jobs, every, lock
        self.saved, self.step = time.monotonic(), 0

    @property
    def identities(self) -> list[str]:
        """The config digests of the jobs, in order; equal jobs have equal digests."""
        return [run.identity for run in self.jobs.runs]

    @property
    def keys(self) -> list[str]:
        """The keys of the jobs' runs, in order; each run has a unique key."""
        return [run.key for run in self.jobs.runs]

    def save(self, at: State, program: Program, now: bool) -> None:
        """Save the state of the group if a checkpoint is due, or if `now`; if it cannot be written, warn and continue."""
        due = now or (self.every is not None and time.monotonic() - self.saved >= self.every)
        variables = parts(program)
        if self.folder is None or variables is None or not due or at.taken == self.step:
            return
        with self.told():
            self.write()
            put(self.folder, at.taken, variables, lambda new: write(at, self.keys, new))
        self.saved, self.step = time.monotonic(), at.taken

    @contextmanager
    def told(self) -> Iterator[None]:
        """Log a warning if a file cannot be written in this block, and continue."""
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            text = "checkpoint: %s cannot be written (%s); the jobs go on without"
            logging.getLogger(__name__).warning(text, self.folder, first_line(error)[:200])

    def write(self) -> None:
        """Write the manifest, and lock the group's folder against other processes."""
        assert self.folder is not None
        if self.lock is None:
            manifest.make(self.folder)
            self.lock = journal.Lock(self.folder, "run", journal.PATIENCE)
        self.jobs.write(self.folder)

    def restore(self, group: Group) -> tuple[State, Callable[[Program], None]] | None:
        """Return the saved state of this group, and a function that restores the program's variables.

        None if there is no checkpoint, so the group starts from step 0. Raises UserError if all checkpoints are damaged.
        """
        assert self.folder is not None
        rules, x0 = group.jobs[0].rules, group.jobs[0].x0
        if (found := newest(self.folder, lambda path: read(path, self.keys, rules.max_iterations + 1, x0))) is None:
            return None
        folder, at = found
        self.step = at.taken

        def give(program: Program) -> None:
            program.execution.restart()
            fill(parts(program) or {}, folder)

        return at, give

    def recording(self, folders: Sequence[Path]) -> None:
        """Write to the manifest that recording begins, with each run's folder; a folder from an earlier attempt is retained."""
        pairs = zip(self.jobs.runs, folders, strict=True)
        self.jobs = self.jobs._replace(runs=[run._replace(folder=run.folder or str(folder)) for run, folder in pairs])
        # Written even without a checkpoint: if the recorder finishes a run without this process, the run's key is known.
        if self.folder is not None:
            with self.told():
                self.write()

    def recorded(self, interrupted: Sequence[bool]) -> None:
        """Remove the recorded jobs from the manifest, except those that a signal interrupted; if none remain, remove all."""
        self.jobs = self.jobs._replace(runs=list(compress(self.jobs.runs, interrupted)))
        if self.jobs.runs and self.folder is not None:
            with self.told():
                self.write()
        else:
            self.remove()

    def remove(self) -> None:
        """Remove the group's files and release the lock: the jobs have their results, or will not be resumed."""
        if self.folder is not None:
            manifest.remove(self.folder)
            self.close()

    def close(self) -> None:
        """Release the lock of the group's folder."""
        if self.lock is not None:
            self.lock.release()
            self.lock = None


def new(pending: Path | None, identities: Sequence[str], columns: Sequence[str], every: float | None) -> Checkpoints:
    """Return the Checkpoints of a new group, with nothing saved yet; without the folder `pending`, none will be saved."""
    runs = [Run(identity, key) for identity, key in zip(identities, bulk_runs.ids(len(identities)), strict=True)]
    return Checkpoints(None if pending is None else manifest.place(pending), Jobs(runs, tuple(columns)), every)


@contextmanager
def interrupted(pending: Path, wanted: Mapping[str, int], every: float | None) -> Iterator[list[Checkpoints]]:
    """Lock the interrupted groups that contain wanted jobs in this block (`wanted`: how many jobs of each config digest).

    Jobs that are not wanted are split off first. Raises UserError if another process is continuing wanted jobs.
    """
    left, found, elsewhere = Counter(wanted), [], {}
    with ExitStack() as stack:
        for folder in manifest.folders(pending):
            try:
                kept = taken(folder, left, every)
            except journal.Held as held:
                elsewhere[folder] = "process {pid} on {host}".format(**held.holder)
                continue
            if kept is not None:
                stack.callback(kept.close)
                found.append(kept)
                left -= Counter(kept.identities)
        for folder, holder in elsewhere.items():
            if shared(manifest.of(folder).runs, left)[0]:
                text = f"jobs of this sweep are being continued by {holder}; wait for it, or set resume=false"
                raise UserError(text)
        yield found


def taken(folder: Path, wanted: Mapping[str, int], every: float | None) -> Checkpoints | None:
    """Lock the wanted jobs of a group and return their Checkpoints; the other jobs stay in the folder as a separate group.

    None if the group has no wanted jobs or is not interrupted. Raises Held if another process is continuing it.
    """
    if not shared(manifest.of(folder).runs, wanted)[0]:
        return None
    own(folder)
    try:
        # In this role, a process that takes other jobs of this group waits for the lock instead of failing.
        lock = journal.Lock(folder, "sending", journal.PATIENCE)
    except journal.Held as held:
        if held.holder.get("role") == "continued":
            raise
        return None
    jobs = manifest.of(folder)
    mine, rest = shared(jobs.runs, wanted)
    if not mine:
        lock.release()
        return None
    found = Checkpoints(folder, jobs._replace(runs=mine, resumed=jobs.resumed + 1), every, lock)
    if rest:
        found.folder = manifest.place(folder.parents[1])
        manifest.make(found.folder)
        found.lock = journal.Lock(found.folder, "continued")
        copied = shutil.ignore_patterns(journal.LOCK, manifest.FILE)
        shutil.copytree(folder, found.folder, ignore=copied, dirs_exist_ok=True)
        found.write()
        jobs._replace(runs=rest).write(folder)
        lock.release()
    else:
        lock.become("continued")
    return found


def shared(runs: Sequence[Run], wanted: Mapping[str, int]) -> tuple[list[Run], list[Run]]:
    """Return the wanted runs, at most `wanted[digest]` of each config digest, and the other runs."""
    left, parts = Counter(wanted), ([], [])
    for run in runs:
        parts[left[run.identity] <= 0].append(run)
        left[run.identity] -= 1
    return parts


def write(at: State, keys: Sequence[str], folder: Path) -> None:
    """Write a group's part of a checkpoint."""
    reached = max([at.taken, *(stop.step + 1 for stop in at.stops.values())])
    with (folder / ROWS).open("wb") as file:
        arrays = {name: getattr(at.rows, name)[:, :reached] for name in ("x", "loss", "gradient")}
        np.savez(file, allow_pickle=False, live=at.live, lane=at.lane, **arrays)
    stops = {job: list(vars(stop).values()) for job, stop in at.stops.items()}
    fields = {"taken": at.taken, "lanes": at.lanes, "seconds": at.seconds, "keys": keys, "stops": stops}
    (folder / STATE).write_text(json.dumps(fields), encoding="utf-8")


def read(folder: Path, keys: Sequence[str], length: int, x0: np.ndarray) -> State:
    """Return a group's part of a checkpoint, for the jobs with these keys and with space for `length` rows.

    Raises Damaged if the checkpoint lacks one of the jobs.
    """
    fields = json.loads((folder / STATE).read_text(encoding="utf-8"))
    at = {key: job for job, key in enumerate(fields["keys"])}
    if not {*keys} <= at.keys():
        raise Damaged(f"{folder / STATE} is of other jobs")
    jobs = [at[key] for key in keys]
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
