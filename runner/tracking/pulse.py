"""What the recorder process lets the run's see without a word: that it moves, and how much of a spool it has taken."""

from __future__ import annotations

import math
import os
import struct
import threading
import time

SLOT = struct.Struct("<d")
# Seconds between two signs.
EVERY = 0.5


class Pulse:
    """A file of two numbers that both processes have open: when the recorder moved last, and what it has taken."""

    def __init__(self, file: int) -> None:
        self.file = file

    def beat(self) -> None:
        """Give a sign every so often, for as long as this process is neither stopped nor gone."""

        def go_on() -> None:
            while True:
                self.put(0, time.monotonic())
                time.sleep(EVERY)

        threading.Thread(target=go_on, name="pulse", daemon=True).start()

    def moved(self) -> float:
        """Return when the recorder moved last, by the monotonic clock; 0 where it has not begun."""
        return self.get(0)

    def take(self, end: float) -> None:
        """Say up to which byte of the spool of the run all is taken."""
        self.put(1, end)

    def take_all(self) -> None:
        """Say that nothing more will be taken of this run."""
        self.take(math.inf)

    def taken(self) -> float:
        """Return up to which byte all is taken."""
        return self.get(1)

    def put(self, slot: int, value: float) -> None:
        """Write a number."""
        os.pwrite(self.file, SLOT.pack(value), slot * SLOT.size)

    def get(self, slot: int) -> float:
        """Return a number."""
        data = os.pread(self.file, SLOT.size, slot * SLOT.size)
        return SLOT.unpack(data)[0] if len(data) == SLOT.size else 0.0
