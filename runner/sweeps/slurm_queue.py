"""The state of tasks by Slurm's queue. Submitit asks the accounting, and waits for ever for a dead task where there is none."""

from __future__ import annotations

import getpass

from submitit.slurm.slurm import SlurmInfoWatcher

# Seconds between looks at the most; a task that died is reported after as many.
DELAY = 15
# States in which a task has ended for good; all others, of which there are more with each release, it may leave again.
ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED"),
    *("TIMEOUT", "GONE"),
}


class Queue(SlurmInfoWatcher):
    """Reads the state of tasks from `squeue`, which shows ended ones for some minutes; one that it no longer shows is GONE."""

    def __init__(self) -> None:
        super().__init__(delay_s=DELAY)

    def _make_command(self) -> list[str] | None:
        if not self._registered - self._finished:
            return None
        # Of all jobs of the user's: squeue fails as a whole for one id that it no longer knows.
        return ["squeue", "--noheader", "--states=all", "--array", f"--user={getpass.getuser()}", "--format=%i|%T"]

    def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
        """Return the state of each task by its id."""
        lines = (string if isinstance(string, str) else string.decode()).splitlines()
        found = {name.strip(): {"State": state.strip()} for name, _, state in (line.partition("|") for line in lines)}
        return {name: found.get(name, {"State": "GONE"}) for name in self._registered - self._finished}

    def is_done(self, job_id: str, mode: str = "standard") -> bool:
        """Tell whether a task has ended for good."""
        return self.get_state(job_id, mode=mode) in ENDED
