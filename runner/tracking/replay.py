"""Replay of a run's messages into the tracking store. Each message is applied such that it may be applied again."""

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

# Limits of the buffer of rows: the time between two flushes, and the size of the rows' x.
SECONDS, BYTES = 0.5, 2**23
# Files that the replay writes beside the journal.
FILES = (artifacts.TRAJECTORY, *pictures.FILES)


class Settings(NamedTuple):
    """Which rows and coordinates become metrics."""

    every: int
    max_coordinates: int


class Unkept(GaveUp):
    """Raised if files of a run that has ended could not be stored. Everything else of the run is in the store."""


class Run:
    """A run in the store and the operations on it. They raise GaveUp if the store does not accept something in time."""

    def __init__(self, client: Any, run_id: str, retry: Retry = once) -> None:
        self.client, self.run_id, self.retry = client, run_id, retry
        self.status, self.recorded, self.continued = "FAILED", 0, 0
        # True if the store may have an end of the run already: that of an interrupted part, or one that was assumed.
        self.again = False
        self.tags: Mapping[str, str] = {}
        self.came_to: tuple[Mapping[str, float], int] = {}, 0
        self.open = ExitStack()
        self.trajectory: artifacts.Trajectory | None = None
        # Calls that store files, made at the run's end: the artifact store may fail while the tracking store works.
        # `unkept` says why a file cannot be stored.
        self.files: list[Callable[[], Any]] = []
        self.unkept: str | None = None
        # Stops the run's heartbeat.
        self.silence: Callable[[], None] = lambda: None

    def go_on(self, life: Mapping[str, str]) -> None:
        """Mark an ended run as running again. `life` holds the tags of its new heartbeat."""
        run = self.client.get_run(self.run_id)
        for name in {*contract.ENDING} & {*run.data.tags}:
            self.client.delete_tag(self.run_id, name)
        resumed = str(int(run.data.tags.get("resumed", 0)) + 1)
        writers.log_tags(self.client, self.run_id, {**life, "resumed": resumed})
        self.client.update_run(self.run_id, "RUNNING")

    def clear(self) -> None:
        """Delete the metrics, parameters and end tags of the run from a database, where a bulk insert may have left them.

        A server has received such data from the journal only.
        """
        if hasattr(store := self.client._tracking_client.store, "engine"):
            self.retry(partial(bulk_runs.clear, store, self.run_id))

    def begin(self, about: contract.About, settings: Settings) -> None:
        """Record the parameters and config.yaml of the run, and open the writers of rows."""
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
        """Write rows to the store and to the run's file."""
        # Both spend most of their time inside a library, so each gets a core.
        filed = self.pool.submit(self.filed, rows)
        self.write(writers.columns_of(rows, *self.settings), at)
        filed.result()
        self.recorded = rows.start + len(rows)

    def filed(self, rows: Trace) -> None:
        """Write rows to the run's file. An error is kept in `unkept`, and does not keep the rows out of the store."""
        assert self.trajectory is not None
        try:
            if self.unkept is None:
                self.trajectory.write(rows)
        except Exception as error:
            self.unkept = first_line(error)

    def report(self, drawing: Drawing) -> None:
        """Draw the report, and add its pictures to the files that are stored with the run."""
        # Missing pictures do not make the run a failure.
        try:
            self.files += [self.kept(path) for path in pictures.draw(self.about.folder, drawing)]
        except Exception as error:
            logging.getLogger(__name__).warning("the report cannot be drawn: %s", first_line(error))

    def finish(self, tags: Mapping[str, str], metrics: Mapping[str, float], at: int) -> None:
        """Remember how the run ended and its result. `end` writes both, since the run may be continued after this message."""
        self.status, self.tags, self.came_to = contract.status_of(tags), tags, (metrics, at)

    def fail(self, status: str, tags: Mapping[str, str]) -> None:
        """Remember that the run ended without a result."""
        self.status, self.tags, self.came_to = status, tags, ({}, 0)

    def end(self, at: int) -> None:
        """Complete the run's file and end the run in the store, when all its messages have arrived.

        Raises Unkept if the run's files could not be stored.
        """
        self.gathered.flush()
        metrics, then = self.came_to
        if metrics:
            if self.again and hasattr(store := self.client._tracking_client.store, "engine"):
                # Delete the result of an interrupted part of the run. A server offers no way to do so.
                self.retry(partial(database.forget, store, self.run_id, "system/"))
            self.write(writers.once(metrics), then)
        self.open.close()
        self.keep_files()
        tags = dict(self.tags) | ({"resumed": str(self.continued)} if self.continued else {})
        if self.unkept:
            tags["recording"] = "incomplete"
        self.retry(partial(writers.log_tags, self.client, self.run_id, tags))
        # An earlier, partial delivery may have set them, or the run was ended as silent.
        self.retry(partial(drop_tags, self.client, self.run_id, set(contract.ENDING) - set(tags)))
        if self.run_id in runs.REPEATED:
            self.retry(partial(runs.delete_others, self.client, self.run_id))
        self.silence()
        self.retry(partial(self.client.set_terminated, self.run_id, self.status, at))
        if self.unkept:
            raise Unkept(f"its files could not be stored: {self.unkept}")

    def kept(self, path: Path) -> Callable[[], Any]:
        """Return a call that stores a file with the run."""
        return partial(artifacts.log_file, self.client, self.run_id, path)

    def keep_files(self) -> None:
        """Store the files with the run, up to the first one that fails."""
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
        """End a run as FAILED that cannot be recorded further. The store may work: a full local disk is a possible cause."""
        with suppress(Exception):
            self.client.set_terminated(self.run_id, "FAILED")
            writers.log_tags(self.client, self.run_id, {"recording": "incomplete"})

    def discard(self) -> None:
        """Close the writers and the run's file, and leave the run's status in the store unchanged."""
        with suppress(Exception):
            self.open.close()
        if self.trajectory is not None:
            self.trajectory.close()


class Gathered:
    """A buffer of rows of one time: a store wants few large transactions, a Parquet file few large row groups."""

    def __init__(self, write: Callable[[Trace, int], None]) -> None:
        self.write = write
        self.waiting: list[Trace] = []
        self.written, self.at = 0.0, 0

    def add(self, rows: Trace, at: int) -> None:
        """Buffer rows, and flush the buffer if it is due. Rows of another time flush it first."""
        if at != self.at:
            self.flush()
        self.waiting.append(rows)
        self.at = at
        if time.monotonic() - self.written > SECONDS or sum(each.x.nbytes for each in self.waiting) > BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the buffered rows."""
        if self.waiting:
            rows, self.waiting = join(self.waiting), []
            self.write(rows, self.at)
        self.written = time.monotonic()


def drop_tags(client: Any, run_id: str, names: Collection[str]) -> None:
    """Delete the tags of these names that a run has."""
    for name in set(names) & set(client.get_run(run_id).data.tags):
        client.delete_tag(run_id, name)


class Player:
    """Replays the journal of a folder into the store."""

    def __init__(self, folder: Path, pending: Path, retry: Retry, run: Run | None = None) -> None:
        self.folder, self.pending, self.retry, self.run = folder, pending, retry, run
        self.begun: runs.Begin | None = None
        self.at, self.ended = 0, False

    def take(self, frame: journal.Frame) -> None:
        """Apply the message of a frame."""
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
        """Begin the run. A later `begin` message continues it after an interruption."""
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
        # The folder may have been moved since the message was written.
        self.run.begin(replace(self.begun.about, folder=self.place()), settings)

    def place(self) -> Path:
        """Return the folder for the run's files: the subfolder `sent` if they would replace files that are not the runner's."""
        if folders.ours(self.folder) or not any(os.path.lexists(self.folder / name) for name in FILES):
            return self.folder
        folders.claim(self.folder / "sent", f"remove it, or send the run from another folder than {self.folder}")
        return self.folder / "sent"

    def end(self) -> None:
        """End the run in the store, and remove its journal and its outbox entry. An interrupted run keeps its journal."""
        assert self.run is not None and self.begun is not None
        # A process that died after `finish` had only pictures left to draw.
        if not self.ended and "ending" not in self.run.tags:
            self.run.fail("KILLED", parent_runs.GONE)
        self.run.end(self.at)
        if self.run.status != "KILLED":
            (self.folder / journal.FILE).unlink()
        # The outbox of this command: a journal from elsewhere may name another one.
        journal.Pointer(self.pending, self.begun.run_key).remove(self.folder)


def play(player: Player, frames: Iterable[journal.Frame]) -> str | None:
    """Replay these frames and end the run. Return None, or one line that says why this failed."""
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
