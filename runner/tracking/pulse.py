"""A file that the run's process and the recorder process share: the recorder's last sign, and how much it has taken."""

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
    """A file of two numbers that both processes have open: the time of the recorder's last sign, and the bytes it has taken."""

    def __init__(self, file: int) -> None:
        self.file = file

    def beat(self) -> None:
        """Start a thread that writes the time every EVERY seconds, as long as this process is neither stopped nor gone."""

        def go_on() -> None:
            while True:
                self.put(0, time.monotonic())
                time.sleep(EVERY)

        threading.Thread(target=go_on, name="pulse", daemon=True).start()

    def moved(self) -> float:
        """Return the time of the recorder's last sign by the monotonic clock; 0 before its first one."""
        return self.get(0)

    def take(self, end: float) -> None:
        """Record that the run's journal is taken up to byte `end`."""
        self.put(1, end)

    def take_all(self) -> None:
        """Record that nothing more of this run will be taken."""
        self.take(math.inf)

    def taken(self) -> float:
        """Return up to which byte the journal is taken; infinity if nothing more will be taken."""
        return self.get(1)

    def put(self, slot: int, value: float) -> None:
        """Write a number into a slot."""
        os.pwrite(self.file, SLOT.pack(value), slot * SLOT.size)

    def get(self, slot: int) -> float:
        """Return the number in a slot; 0 if none was written."""
        data = os.pread(self.file, SLOT.size, slot * SLOT.size)
        return SLOT.unpack(data)[0] if len(data) == SLOT.size else 0.0
