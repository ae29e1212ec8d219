"""The recorder process: it replays the journals of one run after another to the store, while the runs write them.

The end of the pipe shows at once that the run's process has died. The recorder process then ends the run in the store.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from runner.errors import UserError, first_line
from runner.pictures import report as pictures
from runner.security import streams
from runner.system import startup
from runner.tracking import contract, delivery, journal, replay, store, sweep_server
from runner.tracking.journal import messages
from runner.tracking.pulse import Pulse
from runner.tracking.store import heartbeat, parent_runs, runs
from runner.tracking.store.retry import GaveUp, Policy
from runner.tracking.sweep_server import Answers

LOG = logging.getLogger(__name__)
# Seconds that a store has to answer when a run begins.
START = 5.0
# Texts by which a full disk is recognised. If the run's own folder is on that disk, the run ends
# within ROOM seconds and reports it itself.
NO_ROOM, ROOM = ("No space left", "disk is full"), 3.0


def main(connection: Connection, pulse: Pulse, reports: Answers) -> None:
    """Run the recorder process. `reports` handle messages that come after a sweep; SIGTERM may end these handlers."""
    streams.hold()
    pulse.beat()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, leave)
    logging.getLogger("runner").addHandler(Forward(connection))
    store.quieten()
    try:
        serve(connection, pulse, reports)
    except (EOFError, BrokenPipeError):
        parent_runs.abandon(parent_runs.GONE)
    except Exception as error:
        with suppress(OSError):
            messages.send(connection, "error", {"error": first_line(error), "traceback": traceback.format_exc()}, {})
    leave()


class Forward(logging.Handler):
    """Sends the log records of the recorder process to the log of the run."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self.connection = connection

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record, unless the pipe is full: both processes would then wait for each other."""
        if select.select([], [self.connection], [], 0)[1]:
            fields = {"name": record.name, "level": record.levelno, "text": record.getMessage()}
            messages.send(self.connection, "log", fields, {})


def leave(*_: Any) -> None:
    """Discard unused stores, and end the process."""
    store.discard()
    startup.leave(0)


def rest() -> Any:
    """Return the handler of SIGTERM between runs. It is ignored while a sweep is open, which must still be ended.

    A batch system sends SIGTERM to every process of a job.
    """
    return signal.SIG_IGN if parent_runs.OPEN else leave


def serve(connection: Connection, pulse: Pulse, reports: Answers) -> None:
    """Handle one message after another; raises EOFError when the run's process is gone."""
    answers = {**sweep_server.ANSWERS, **reports}
    while True:
        word, fields, arrays = messages.receive(connection)
        if word == "more":
            continue
        os.chdir(fields.pop("cwd"))
        # A batch system sends SIGTERM to every process of a job. This one must outlive the run, but not for a report.
        signal.signal(signal.SIGTERM, rest() if word in reports else signal.SIG_IGN)
        if word in answers:
            messages.send(connection, "answer", answers[word](fields, arrays), {})
        elif word == "prepare":
            signal.signal(signal.SIGTERM, rest())
            prepare(connection, **fields)
        elif word == "send":
            sent = delivery.send(Path(fields["folder"]), Path(fields["pending"]), fields["timeout"], LOG.warning)
            messages.send(connection, "answer", {"left": sent.left}, {})
        elif word == "find":
            messages.send(connection, "answer", {"runs": interrupted(fields)}, {})
        elif word == "watch":
            messages.send(connection, "answer", {"silent": silent(fields)}, {})
        else:
            record(connection, fields, pulse)
        signal.signal(signal.SIGTERM, rest())


def prepare(connection: Connection, uri: str, draws: bool) -> None:
    """Open the store, end its silent runs, and import the plotting code if it `draws`."""
    # An error here occurs again at `begin`, which answers with it.
    with suppress(Exception):
        store.prepare(uri)
        if store.exists(uri):
            heartbeat.reap(store.client_of(uri))
        if draws:
            pictures.get_ready(connection.poll)


@contextmanager
def starting(uri: str) -> Iterator[Policy]:
    """Yield the retry policy of a run's beginning; raises UserError if the store is given up."""
    began = time.monotonic()
    try:
        yield Policy(START, lambda: began)
    except GaveUp as error:
        raise UserError(f"tracking.uri {uri!r} cannot be used: {error}; set it with tracking.uri=sqlite:///…") from error


def interrupted(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the interrupted runs with the config digest of this run."""
    said = runs.Begin.of(fields)
    client, experiment_id = said.opened()
    with starting(said.keys["uri"]) as retry:
        return retry(lambda: runs.interrupted(client, experiment_id, said.about.tags["identity"]))


def silent(fields: Mapping[str, Any]) -> bool:
    """Return whether a run of another machine is silent."""
    client = store.client_of(fields["uri"])
    return heartbeat.still(client, fields["run_id"], fields["beat"], fields["every"])


def record(connection: Connection, fields: Mapping[str, Any], pulse: Pulse) -> None:
    """Begin or continue a run, answer, and replay its journal until it has ended."""
    said, folder = runs.Begin.of(fields), Path(fields["folder"])
    client, experiment_id = said.opened()
    with starting(said.keys["uri"]) as retry:
        if fields["run_id"] is None:
            run = replay.Run(*said.run(retry, fields["at"], new=True), retry)
        else:
            run = replay.Run(client, fields["run_id"], retry)
            life = heartbeat.first_tags(said.keys["heartbeat"], os.getppid())
            retry(partial(run.go_on, life))
    pulse.take(0)
    messages.send(connection, "answer", {"run_id": run.run_id, "experiment_id": experiment_id}, {})
    inbox = Inbox(connection)
    run.retry = Policy(said.keys["flush_timeout"], inbox.ended, inbox.wait)
    threading.Thread(target=delivery.quietly, args=(Path(said.keys["pending"]), folder, said.keys["uri"]), daemon=True).start()
    player = replay.Player(folder, Path(said.keys["pending"]), run.retry, run)
    with heartbeat.Heart(client, run.run_id, said.keys["heartbeat"]) as heart:
        run.silence = heart.stop
        left = replay.play(player, written(folder, inbox, pulse))
        pulse.take_all()
        if left and not inbox.ends(ROOM if any(words in left for words in NO_ROOM) else 0):
            LOG.warning("run %s is not recorded further, and goes on: %s", run.run_id, left)
        while inbox.ended() is None:
            inbox.wait(1.0)
    if inbox.gone:
        raise EOFError
    messages.send(connection, "answer", {"left": left}, {})


class Inbox:
    """The messages of the run's process while it runs: its journal has grown, or it has ended."""

    def __init__(self, connection: Connection) -> None:
        self.connection, self.lock = connection, threading.Lock()
        self.at: float | None = None
        self.gone = False
        self.failure: Mapping[str, Any] = {}  # a failure for which the journal had no room

    def wait(self, seconds: float) -> None:
        """Wait for messages, at most `seconds` long."""
        if self.at is not None:
            time.sleep(seconds)
            return
        with self.lock:
            while self.at is None and self.connection.poll(seconds):
                seconds = 0
                try:
                    word, self.failure, _ = messages.receive(self.connection)
                    ended = word == "end"
                except (EOFError, OSError):
                    ended = self.gone = True
                if ended:
                    self.at = time.monotonic()

    def ends(self, seconds: float) -> bool:
        """Return whether the run has ended, or ends within `seconds`."""
        until = time.monotonic() + seconds
        while self.ended() is None and time.monotonic() < until:
            self.wait(0.1)
        return self.at is not None

    def ended(self) -> float | None:
        """Return the time of the run's end by the monotonic clock, or None."""
        self.wait(0)
        return self.at


def written(folder: Path, inbox: Inbox, pulse: Pulse) -> Iterator[journal.Frame]:
    """Yield the frames of a journal while it is written, and flush its file to the disk about each second."""
    end, synced = 0, time.monotonic()
    lock = None
    with (folder / journal.FILE).open("rb") as file:
        while True:
            last = inbox.ended() is not None
            if inbox.gone and lock is None:
                # Raises Held if another process continues the run already.
                lock = journal.Lock(folder, "sending")
            for frame in journal.frames(file, end):
                yield frame
                end = frame.end
                pulse.take(end)
            if last:
                break
            inbox.wait(1.0)
            if time.monotonic() - synced > 1:
                # In a thread, so that rows are recorded meanwhile.
                threading.Thread(target=to_disk, args=(os.dup(file.fileno()),), daemon=True).start()
                synced = time.monotonic()
    if inbox.failure:
        at = contract.clock()
        yield journal.Frame(messages.Message("fail", dict(inbox.failure), {}), at, end)
        yield journal.Frame(messages.Message("end", {}, {}), at, end)


def to_disk(file: int) -> None:
    """Flush a file to the disk, and close it."""
    with suppress(OSError):
        os.fdatasync(file)
    os.close(file)
