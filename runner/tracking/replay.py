"""A run's messages on their way into the tracking store: each is applied in such a way that it may be applied again."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from runner.errors import first_line
from runner.pictures import report as pictures
from runner.pictures.data import Drawing
from runner.system import folders
from runner.trace import Trace, join
from runner.tracking import contract, journal
from runner.tracking.store import artifacts, bulk_runs, database, parent_runs, runs, writers
from runner.tracking.store.retry import GaveUp, Retry, once

# Rows wait to be written for so long, or until their x take so much.
SECONDS, BYTES = 0.5, 2**23
# What is written beside a spool while it is sent.
FILES = (artifacts.TRAJECTORY, *pictures.FILES)


class Settings(NamedTuple):
    """Which rows and coordinates become metrics."""

    every: int
    max_coordinates: int


class Unkept(GaveUp):
    """Files of a run that ended could not be stored, and all else of it is in the store."""


class Run:
    """A run in the store, and what is done to it; raises GaveUp where the store does not take it in time."""

    def __init__(self, client: Any, run_id: str, retry: Retry = once) -> None:
        self.client, self.run_id, self.retry = client, run_id, retry
        self.status, self.recorded, self.continued = "FAILED", 0, 0
        # Whether the store may have its end already, as that of a part of it or as it was thought to be.
        self.again = False
        self.tags: Mapping[str, str] = {}
        self.came_to: tuple[Mapping[str, float], int] = {}, 0
        self.open = ExitStack()
        self.trajectory: artifacts.Trajectory | None = None
        # What keeps files may be out while the store is not: they are kept at the run's end, and here is why one cannot be.
        self.files: list[Callable[[], Any]] = []
        self.unkept: str | None = None
        # What says of the run that it is alive ends with this.
        self.silence: Callable[[], None] = lambda: None

    def go_on(self, life: Mapping[str, str]) -> None:
        """Take back that the run has ended; `life` is by what it is known to be alive."""
        run = self.client.get_run(self.run_id)
        for name in {*contract.ENDING} & {*run.data.tags}:
            self.client.delete_tag(self.run_id, name)
        resumed = str(int(run.data.tags.get("resumed", 0)) + 1)
        writers.log_tags(self.client, self.run_id, {**life, "resumed": resumed})
        self.client.update_run(self.run_id, "RUNNING")

    def clear(self) -> None:
        """Take out of a database what it has of the run, recorded with others at once; a server has what a spool had."""
        if hasattr(store := self.client._tracking_client.store, "engine"):
            self.retry(partial(bulk_runs.clear, store, self.run_id))

    def begin(self, about: contract.About, settings: Settings) -> None:
        """Say what is said of a run once."""
        self.about, self.settings = about, settings
        self.retry(partial(writers.log_params, self.client, self.run_id, about.params))
        config = partial(artifacts.log_text, self.client, self.run_id, about.config, "config.yaml")
        try:
            config()
        except Exception:
            self.files.append(config)
        self.trajectory = artifacts.Trajectory(about.folder / artifacts.TRAJECTORY)
        self.write = self.open.enter_context(writers.writer(self.client, self.run_id, self.retry))
        self.pool = self.open.enter_context(ThreadPoolExecutor(1))
        self.gathered = Gathered(self.write_rows)
        self.record = self.gathered.add

    def write_rows(self, rows: Trace, at: int) -> None:
        """Write rows to the store and into a file."""
        # Both wait for a library most of the time, so each has a core.
        filed = self.pool.submit(self.filed, rows)
        self.write(writers.columns_of(rows, *self.settings), at)
        filed.result()
        self.recorded = rows.start + len(rows)

    def filed(self, rows: Trace) -> None:
        """Write rows into the run's file; what it cannot take does not keep them out of the store."""
        assert self.trajectory is not None
        try:
            if self.unkept is None:
                self.trajectory.write(rows)
        except Exception as error:
            self.unkept = first_line(error)

    def report(self, drawing: Drawing) -> None:
        """Draw a report, whose pictures are kept with the run."""
        # A run is not worth less for want of its pictures.
        try:
            self.files += [self.kept(path) for path in pictures.draw(self.about.folder, drawing)]
        except Exception as error:
            logging.getLogger(__name__).warning("the report cannot be drawn: %s", first_line(error))

    def finish(self, tags: Mapping[str, str], metrics: Mapping[str, float], at: int) -> None:
        """Say how the run ended and what it came to, which the store is told with its end: it may have been continued."""
        self.status, self.tags, self.came_to = contract.status_of(tags), tags, (metrics, at)

    def fail(self, status: str, tags: Mapping[str, str]) -> None:
        """Say that the run ended without a result."""
        self.status, self.tags, self.came_to = status, tags, ({}, 0)

    def end(self, at: int) -> None:
        """Complete the run's file and end the run, when all that was said of it has arrived."""
        self.gathered.flush()
        metrics, then = self.came_to
        if metrics:
            if self.again and hasattr(store := self.client._tracking_client.store, "engine"):
                # What a part of the run came to. A server offers no way to do so.
                self.retry(partial(database.forget, store, self.run_id, "system/"))
            self.write(writers.once(metrics), then)
        self.open.close()
        self.keep_files()
        tags = dict(self.tags) | ({"resumed": str(self.continued)} if self.continued else {})
        if self.unkept:
            tags["recording"] = "incomplete"
        self.retry(partial(writers.log_tags, self.client, self.run_id, tags))
        # It may have been sent in part before, or been ended for a silence.
        self.retry(partial(drop_tags, self.client, self.run_id, set(contract.ENDING) - set(tags)))
        if self.run_id in runs.REPEATED:
            self.retry(partial(runs.delete_others, self.client, self.run_id))
        self.silence()
        self.retry(partial(self.client.set_terminated, self.run_id, self.status, at))
        if self.unkept:
            raise Unkept(f"its files could not be stored: {self.unkept}")

    def kept(self, path: Path) -> Callable[[], Any]:
        """Return what keeps a file with the run."""
        return partial(artifacts.log_file, self.client, self.run_id, path)

    def keep_files(self) -> None:
        """Keep the files with the run, up to the first that cannot be."""
        try:
            if self.trajectory is not None and self.trajectory.close():
                self.files.append(self.kept(self.trajectory.path))
            for keep in self.files if self.unkept is None else ():
                self.retry(keep)
        except GaveUp as error:
            self.unkept = str(error)
        except Exception as error:
            self.unkept = first_line(error)

    def abandon(self) -> None:
        """End a run that cannot be recorded further, for want of room perhaps, in a store that may be all right."""
        with suppress(Exception):
            self.client.set_terminated(self.run_id, "FAILED")
            writers.log_tags(self.client, self.run_id, {"recording": "incomplete"})

    def discard(self) -> None:
        """Let go of what is open, without a word to the store."""
        with suppress(Exception):
            self.open.close()
        if self.trajectory is not None:
            self.trajectory.close()


class Gathered:
    """Rows of one time on their way to be written: a store wants few large transactions, a file few large row groups."""

    def __init__(self, write: Callable[[Trace, int], None]) -> None:
        self.write = write
        self.waiting: list[Trace] = []
        self.written, self.at = 0.0, 0

    def add(self, rows: Trace, at: int) -> None:
        """Take rows, and write those that are waiting where that is due."""
        if at != self.at:
            self.flush()
        self.waiting.append(rows)
        self.at = at
        if time.monotonic() - self.written > SECONDS or sum(each.x.nbytes for each in self.waiting) > BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting."""
        if self.waiting:
            rows, self.waiting = join(self.waiting), []
            self.write(rows, self.at)
        self.written = time.monotonic()


def drop_tags(client: Any, run_id: str, names: Collection[str]) -> None:
    """Remove those of these tags that a run has."""
    for name in set(names) & set(client.get_run(run_id).data.tags):
        client.delete_tag(run_id, name)


class Player:
    """Plays a folder's spool to the store."""

    def __init__(self, folder: Path, pending: Path, retry: Retry, run: Run | None = None) -> None:
        self.folder, self.pending, self.retry, self.run = folder, pending, retry, run
        self.begun: runs.Begin | None = None
        self.at, self.ended = 0, False

    def take(self, frame: journal.Frame) -> None:
        """Do what a message says."""
        (word, fields, arrays), self.at = frame.message, frame.at
        self.ended = word == "end"
        if word == "begin":
            self.begin(fields)
            return
        assert self.run is not None
        if word == "record":
            self.run.record(journal.rows_of(frame.message), frame.at)
        elif word == "report":
            self.run.report(Drawing(**{**fields, "labels": tuple(fields["labels"])}, arrays=arrays))
        elif word == "finish":
            self.run.finish(fields["tags"], fields["metrics"], frame.at)
        elif word == "fail":
            self.run.fail(fields["status"], fields["tags"])

    def begin(self, fields: Mapping[str, Any]) -> None:
        """Begin the run, or go on with it where it was interrupted."""
        if self.begun is not None:
            assert self.run is not None
            self.run.continued, self.run.again, self.run.tags = self.run.continued + 1, True, {}
            return
        self.begun = runs.Begin.of(fields)
        if self.run is None:
            self.run = Run(*self.begun.run(self.retry, self.at, new=False), self.retry)
            self.run.again = True
            if fields.get("whole"):
                self.run.clear()
        settings = Settings(self.begun.keys["every"], self.begun.keys["max_coordinates"])
        # Wherever the folder has been moved.
        self.run.begin(replace(self.begun.about, folder=self.place()), settings)

    def place(self) -> Path:
        """Return the folder for the run's files: one below the spool's where those would replace files of others."""
        if folders.ours(self.folder) or not any(os.path.lexists(self.folder / name) for name in FILES):
            return self.folder
        folders.claim(self.folder / "sent", f"remove it, or send the run from another folder than {self.folder}")
        return self.folder / "sent"

    def end(self) -> None:
        """End the run in the store, and remove what is needed no longer: of an interrupted run, the spool stays."""
        assert self.run is not None and self.begun is not None
        # A process that is gone after that had only pictures to make.
        if not self.ended and "ending" not in self.run.tags:
            self.run.fail("KILLED", parent_runs.GONE)
        self.run.end(self.at)
        if self.run.status != "KILLED":
            (self.folder / journal.FILE).unlink()
        # Where this command lists what is pending, whatever a spool that was sent here says.
        journal.Pointer(self.pending, self.begun.run_key).remove(self.folder)


def play(player: Player, frames: Iterable[journal.Frame]) -> str | None:
    """Play these frames and end the run; returns None, or in one line why that could not be done."""
    try:
        for frame in frames:
            player.take(frame)
        player.end()
    except Exception as error:
        if player.run is not None:
            player.run.discard()
            if not isinstance(error, GaveUp):
                player.run.abandon()
        return str(error) if isinstance(error, Unkept) else first_line(error)
    return None
