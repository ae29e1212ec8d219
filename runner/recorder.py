"""The recorder in a process of its own: what a run calls, the process as it is seen from there, and what runs in it.

It imports MLflow and opens the store on another core while TensorFlow is imported here, and records rows while the next are
computed. By the end of the pipe it sees at once that the run's process has died, and ends the run in the store.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import wraps
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from runner import pictures, quick, store, sweep_recorder, sweep_store, tracking, wire
from runner.drawing import Drawing
from runner.errors import UserError, first_line
from runner.trace import Trace
from runner.tracking import Abandoned, About, Recorder


@wraps(tracking.mlflow)
@contextmanager
def mlflow(about: About, **keys: Any) -> Iterator[Recorder]:
    """Record as `tracking.mlflow` does, which is what runs in the process."""
    process = Process.of_this_process()
    process.say("begin", {"about": sweep_recorder.fields_of(about), "keys": keys, "cwd": os.getcwd()})
    begun = process.answer()
    try:
        yield Recorder(
            process.record,
            lambda tags, metrics: process.say("finish", {"tags": tags, "metrics": metrics}),
            report=lambda drawing: process.say("report", drawing.fields, drawing.arrays),
            **begun,
        )
    except BaseException as error:
        # What went wrong matters more than a process that cannot be told of it.
        with suppress(UserError):
            status, tags = tracking.abandoned(error)
            process.say("fail", {"status": status, "tags": tags})
            process.answer()
        raise
    process.say("end")
    process.answer()


def prepare(*, uri: str, draws: bool) -> None:
    """Start the process, to open the store, and to import what draws, while TensorFlow is imported."""
    Process.of_this_process().say("prepare", {"uri": uri, "draws": draws, "cwd": os.getcwd()})


def sweep(**keys: Any) -> sweep_recorder.SweepRecorder:
    """Return what records a sweep as a whole; the keys are those of the tracking group."""
    return sweep_recorder.SweepRecorder(Process.of_this_process(), **keys)


setattr(mlflow, "prepare", prepare)
setattr(mlflow, "sweep", sweep)


class Process:
    """The recorder process: it answers `begin`, `end` and `fail`, and speaks unasked where something goes wrong."""

    current: Process | None = None

    @classmethod
    def of_this_process(cls) -> Process:
        """Return the one that all runs of this process share, one after another; started where there is none."""
        if cls.current is None:
            cls.current = cls()
            quick.at_end.append(cls.current.stop)
        return cls.current

    def __init__(self) -> None:
        self.connection, theirs = Pipe()
        path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(Path(__file__).parents[1])]))
        # In a session of its own: Ctrl-C ends the run, and the recorder hears of it from there.
        self.child = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()

    def say(self, word: str, fields: Mapping[str, Any] | None = None, arrays: Mapping[str, Any] | None = None) -> None:
        """Send a message."""
        try:
            wire.send(self.connection, word, fields or {}, arrays or {})
        except OSError:
            # It has gone, and said why.
            self.answer()

    def ask(self, word: str, fields: Mapping[str, Any], arrays: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Send a message and return its answer."""
        self.say(word, {**fields, "cwd": os.getcwd()}, arrays)
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Return the next answer; raises UserError where it is an error, or never comes."""
        while (fields := self.hear()) is None:
            pass
        return fields

    def hear(self) -> dict[str, Any] | None:
        """Take the next message: an answer, an error, which is raised, or a line for the log, which is None."""
        try:
            word, fields, _ = wire.receive(self.connection)
        except (EOFError, OSError):
            raise UserError(f"tracking: the recorder process ended by itself, with exit code {self.stop()}") from None
        if word == "log":
            logging.getLogger(fields["name"]).log(fields["level"], fields["text"])
            return None
        if word == "error":
            self.stop()
            error = UserError(fields["error"])
            error.add_note(fields["traceback"])
            raise error
        return fields

    def record(self, rows: Trace) -> None:
        """Send rows."""
        fields = {"start": rows.start, "measured": list(rows.measured)}
        own = {"x": rows.x, "loss": rows.loss, "gradient": rows.gradient}
        self.say("record", fields, {**own, **rows.named, **rows.measured})
        while self.connection.poll():
            self.hear()

    def stop(self) -> int:
        """End the process, in which no run is open, and return its exit code."""
        Process.current = None
        self.connection.close()
        self.child.terminate()
        return self.child.wait()


def main(connection: Connection) -> None:
    """Be the recorder process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, leave)
    logging.getLogger("runner").addHandler(Forward(connection))
    try:
        serve(connection)
    except (EOFError, BrokenPipeError):
        sweep_store.abandon(sweep_store.GONE)
    except Exception as error:
        with suppress(OSError):
            wire.send(connection, "error", {"error": first_line(error), "traceback": traceback.format_exc()}, {})
    leave()


class Forward(logging.Handler):
    """What the recorder logs, to the log of the run."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self.connection = connection

    def emit(self, record: logging.LogRecord) -> None:
        """Send a line, unless so much lies unread that both processes would wait for each other."""
        if select.select([], [self.connection], [], 0)[1]:
            fields = {"name": record.name, "level": record.levelno, "text": record.getMessage()}
            wire.send(self.connection, "log", fields, {})


def leave(*_: Any) -> None:
    """End the process."""
    store.discard()
    quick.leave(0)


def rest() -> Any:
    """Return what SIGTERM does between runs: a batch system sends it to every process, and a sweep has to be ended yet."""
    return signal.SIG_IGN if sweep_store.OPEN else leave


def serve(connection: Connection) -> None:
    """Record one run after another, until the run's process is gone."""
    while True:
        word, fields, arrays = wire.receive(connection)
        os.chdir(fields.pop("cwd"))
        if word in sweep_recorder.ANSWERS:
            wire.send(connection, "answer", sweep_recorder.ANSWERS[word](fields, arrays), {})
            signal.signal(signal.SIGTERM, rest())
            continue
        if word == "prepare":
            # What goes wrong here does so again at `begin`, which is asked to answer.
            with suppress(Exception):
                store.prepare(fields["uri"])
                if fields["draws"]:
                    pictures.get_ready(connection.poll)
            continue
        about = sweep_recorder.about_of(fields["about"])
        # A batch system sends SIGTERM to every process of a job; this one has to outlive the run.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with suppress(Abandoned), tracking.mlflow(about, **fields["keys"]) as recorder:
            begun = {"run_id": recorder.run_id, "experiment_id": recorder.experiment_id, "uri": recorder.uri}
            wire.send(connection, "begun", begun, {})
            follow(connection, recorder)
        signal.signal(signal.SIGTERM, rest())
        wire.send(connection, "ended", {}, {})


def follow(connection: Connection, recorder: Recorder) -> None:
    """Record what comes until the run ends; raises Abandoned where it fails, or its process dies."""
    while True:
        try:
            word, fields, arrays = wire.receive(connection)
        except EOFError:
            raise Abandoned("KILLED", sweep_store.GONE) from None
        if word == "record":
            row = {name: arrays.pop(name) for name in ("x", "loss", "gradient")}
            measured = {name: arrays.pop(name) for name in fields["measured"]}
            recorder.record(Trace(fields["start"], **row, named=arrays, measured=measured))
        elif word == "report":
            recorder.report(Drawing(**{**fields, "labels": tuple(fields["labels"])}, arrays=arrays))
        elif word == "finish":
            recorder.finish(fields["tags"], fields["metrics"])
        elif word == "fail":
            raise Abandoned(fields["status"], fields["tags"])
        else:
            return


if __name__ == "__main__":
    main(Connection(int(sys.argv[1])))
