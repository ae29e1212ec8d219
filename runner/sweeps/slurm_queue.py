"""The state of Slurm tasks, read from the queue.

Submitit reads the accounting instead; without accounting it waits for ever for a dead task.
"""

from __future__ import annotations

import getpass

from submitit.slurm.slurm import SlurmInfoWatcher

# Maximum number of seconds between two reads of the queue; a dead task is reported after at most this time.
DELAY = 15
# Final states of a task. A task may leave any other state again; each release of Slurm adds states.
ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED"),
    *("TIMEOUT", "GONE"),
}


class Queue(SlurmInfoWatcher):
    """Reads the state of tasks from `squeue`, which shows ended tasks for some minutes; a missing task is GONE."""

    def __init__(self) -> None:
        super().__init__(delay_s=DELAY)

    def _make_command(self) -> list[str] | None:
        if not self._registered - self._finished:
            return None
        # Ask for all jobs of the user: given a list of ids, squeue fails as a whole if it no longer knows one of them.
        return ["squeue", "--noheader", "--states=all", "--array", f"--user={getpass.getuser()}", "--format=%i|%T"]

    def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
        """Return the state of each task by its id."""
        lines = (string if isinstance(string, str) else string.decode()).splitlines()
        found = {name.strip(): {"State": state.strip()} for name, _, state in (line.partition("|") for line in lines)}
        return {name: found.get(name, {"State": "GONE"}) for name in self._registered - self._finished}

    def is_done(self, job_id: str, mode: str = "standard") -> bool:
        """Return whether a task is in a final state."""
        return self.get_state(job_id, mode=mode) in ENDED
