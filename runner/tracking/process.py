"""The recorder process as seen from the run's process: it is started, gets messages, and answers them."""

from __future__ import annotations

import logging
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from runner.errors import UserError
from runner.system import forks, signals, started, startup
from runner.tracking.journal import messages
from runner.tracking.pulse import Pulse

# Seconds without a sign after which a recorder process is killed while it is waited for: STILL, and
# BEGINNING before its first sign.
STILL, BEGINNING = 60.0, 300.0
# Messages without an answer.
UNANSWERED = ("prepare", "more")


class Process:
    """The recorder process. It answers all messages but UNANSWERED, and sends log lines and errors unasked."""

    current: Process | None = None

    @classmethod
    def of_this_process(cls) -> Process:
        """Return the recorder process, which all runs of this process share one after another; start it if there is none."""
        if cls.current is None:
            cls.current = cls()
            startup.at_end.append(cls.current.stop)
        return cls.current

    def __init__(self) -> None:
        self.connection, theirs = Pipe()
        file, path = tempfile.mkstemp()
        os.unlink(path)
        self.pulse, self.stuck = Pulse(file), False
        # Answers that are not read yet. Ctrl-C may leave some.
        self.due = 0
        path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(Path(__file__).parents[2])]))
        # A new session: Ctrl-C reaches the run alone, and the run notifies the recorder process.
        with signals.blocked():
            self.child = subprocess.Popen(
                [sys.executable, "-m", "runner._recorder", str(theirs.fileno()), str(self.pulse.file)],
                pass_fds=[theirs.fileno(), self.pulse.file],
                env=os.environ | {"PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        theirs.close()
        # Forked processes close the pipe, so that the recorder process sees the end of this process.
        self.stay = forks.leaving(self.connection.close)

    def say(self, word: str, fields: Mapping[str, Any] | None = None, arrays: Mapping[str, Any] | None = None) -> None:
        """Send a message."""
        try:
            # After half a message, neither side could read the next one.
            with self.watched(STILL) if arrays else nullcontext(), signals.put_off():
                messages.send(self.connection, word, fields or {}, arrays or {})
                self.due += word not in UNANSWERED
        except OSError:
            # The recorder process is gone; its last message says why.
            self.answer()

    def ask(self, word: str, fields: Mapping[str, Any], arrays: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Read the answers that are due, send a message and return its answer."""
        while self.due:
            self.answer()
        self.say(word, {**fields, "cwd": str(started.folder())}, arrays)
        return self.answer()

    def answer(self, patience: float = STILL) -> dict[str, Any]:
        """Return the next answer; raises UserError if it is an error, or if none comes in time."""
        with self.watched(patience):
            while (fields := self.hear()) is None:
                pass
            return fields

    @contextmanager
    def watched(self, patience: float) -> Iterator[None]:
        """Kill the recorder process if it gives no sign for `patience` seconds within this block, as a stopped process does."""
        over, began = threading.Event(), time.monotonic()

        def watch() -> None:
            while not over.wait(min(1.0, patience / 2)):
                moved = self.pulse.moved()
                if time.monotonic() - max(began, moved) > (patience if moved else max(patience, BEGINNING)):
                    self.stuck = True
                    self.child.kill()
                    return

        threading.Thread(target=watch, name="watches the recorder", daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def hear(self) -> dict[str, Any] | None:
        """Read the next message: return an answer, raise an error as UserError, or log a log line and return None."""
        try:
            # Ctrl-C may interrupt the wait for a message, but not its reading.
            self.connection.poll(None)
            with signals.put_off():
                word, fields, _ = messages.receive(self.connection)
                self.due -= word == "answer"
        except (EOFError, OSError):
            code = self.stop()
            how = "stood still and was ended" if self.stuck else f"ended by itself, with exit code {code}"
            raise UserError(f"tracking: the recorder process {how}") from None
        if word == "log":
            logging.getLogger(fields["name"]).log(fields["level"], fields["text"])
            return None
        if word == "error":
            self.stop()
            error = UserError(fields["error"])
            error.add_note(fields["traceback"])
            raise error
        return fields

    def ring(self) -> None:
        """Notify the recorder process that a journal has grown, unless the pipe is full, and read all its messages."""
        if select.select([], [self.connection], [], 0)[1]:
            self.say("more")
        while self.connection.poll():
            self.hear()

    def stop(self) -> int:
        """End the recorder process, in which no run is open, and return its exit code."""
        Process.current = None
        self.stay()
        self.connection.close()
        self.child.terminate()
        with self.watched(STILL):
            return self.child.wait()
