"""The recorder process as it is seen from the run's: started, spoken to, and heard."""

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

# Seconds that the process may stand still while it is waited for, and before it has begun.
STILL, BEGINNING = 60.0, 300.0
# Messages that have no answer.
UNANSWERED = ("prepare", "more")


class Process:
    """The recorder process: it answers all but UNANSWERED, and speaks unasked where something goes wrong."""

    current: Process | None = None

    @classmethod
    def of_this_process(cls) -> Process:
        """Return the one that all runs of this process share, one after another; started where there is none."""
        if cls.current is None:
            cls.current = cls()
            startup.at_end.append(cls.current.stop)
        return cls.current

    def __init__(self) -> None:
        self.connection, theirs = Pipe()
        file, path = tempfile.mkstemp()
        os.unlink(path)
        self.pulse, self.stuck = Pulse(file), False
        # Answers that are yet to be read. Ctrl-C may leave some.
        self.due = 0
        path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(Path(__file__).parents[2])]))
        # In a session of its own: Ctrl-C ends the run, and the recorder hears of it from there.
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
        # It is to see the end of this process, whoever that has forked.
        self.stay = forks.leaving(self.connection.close)

    def say(self, word: str, fields: Mapping[str, Any] | None = None, arrays: Mapping[str, Any] | None = None) -> None:
        """Send a message."""
        try:
            # Half a message would leave neither side able to read the next one.
            with self.watched(STILL) if arrays else nullcontext(), signals.put_off():
                messages.send(self.connection, word, fields or {}, arrays or {})
                self.due += word not in UNANSWERED
        except OSError:
            # It has gone, and said why.
            self.answer()

    def ask(self, word: str, fields: Mapping[str, Any], arrays: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Send a message and return its answer, after those that are due."""
        while self.due:
            self.answer()
        self.say(word, {**fields, "cwd": str(started.folder())}, arrays)
        return self.answer()

    def answer(self, patience: float = STILL) -> dict[str, Any]:
        """Return the next answer; raises UserError where it is an error, or never comes."""
        with self.watched(patience):
            while (fields := self.hear()) is None:
                pass
            return fields

    @contextmanager
    def watched(self, patience: float) -> Iterator[None]:
        """End the process where it stands still for so many seconds within this block, as one does that was stopped."""
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
        """Take the next message: an answer, an error, which is raised, or a line for the log, which is None."""
        try:
            # To wait for it may be interrupted, to read it may not.
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
        """Say that a spool has more, unless so much lies unread that it is known, and hear what there is to hear."""
        if select.select([], [self.connection], [], 0)[1]:
            self.say("more")
        while self.connection.poll():
            self.hear()

    def stop(self) -> int:
        """End the process, in which no run is open, and return its exit code."""
        Process.current = None
        self.stay()
        self.connection.close()
        self.child.terminate()
        with self.watched(STILL):
            return self.child.wait()
