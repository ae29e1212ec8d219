"""The recorder of an offline sweep: runs go to their journals only, and the outbox lists the runs of earlier commands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any

from runner.tracking import contract, fused_runs, outbox
from runner.tracking.store import bulk_runs
from runner.tracking.store.retry import once


class OfflineSweep:
    """Records a sweep's runs as SweepRecorder does, but no parent run. The keys are those of the tracking group."""

    run_id = None

    def __init__(self, pending: str, **keys: Any) -> None:
        self.pending, self.keys = Path(pending), {**keys, "pending": pending, "offline": True}

    def known(self) -> dict[str, dict[str, Any]]:
        """Return the runs in the outbox by config digest."""
        return outbox.known(self.pending)

    def begin(self, name: str, tags: Mapping[str, str]) -> dict[str, dict[str, Any]]:
        """Return the runs in the outbox by config digest. No parent run is created."""
        return self.known()

    def settled(self, identities: Set[str], before: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Return by config digest the runs of these started jobs whose processes are gone, if they changed since `before`."""
        return {each: run for each, run in self.known().items() if each in identities and run != before.get(each)}

    def record(self, jobs: Iterable[bulk_runs.Job]) -> list[str | None]:
        """Write whole runs to their journals. Return None for each: a run gets its id when it is sent."""
        at = contract.clock()
        return [fused_runs.by_spool(job, self.keys, at, once, "tracking.offline=true").run_id for job in jobs]
