"""A sweep whose runs are only spooled: of what was run before, the spools that are listed as pending tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any

from runner.tracking import contract, fused_runs, outbox
from runner.tracking.store import bulk_runs
from runner.tracking.store.retry import once


class OfflineSweep:
    """Records a sweep's runs as SweepRecorder does, but the sweep itself nowhere; the keys are those of the tracking group."""

    run_id = None

    def __init__(self, pending: str, **keys: Any) -> None:
        self.pending, self.keys = Path(pending), {**keys, "pending": pending, "offline": True}

    def known(self) -> dict[str, dict[str, Any]]:
        """Return by identity the runs that are listed."""
        return outbox.known(self.pending)

    def begin(self, name: str, tags: Mapping[str, str]) -> dict[str, dict[str, Any]]:
        """Return the same: nobody is told that a sweep begins."""
        return self.known()

    def settled(self, identities: Set[str], before: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Return by identity what the runs of jobs that had begun, and whose processes are gone, have become since `before`."""
        return {each: run for each, run in self.known().items() if each in identities and run != before.get(each)}

    def record(self, jobs: Iterable[bulk_runs.Job]) -> list[str | None]:
        """Spool whole runs; returns their ids, which they do not have yet."""
        at = contract.clock()
        return [fused_runs.by_spool(job, self.keys, at, once, "tracking.offline=true").run_id for job in jobs]
