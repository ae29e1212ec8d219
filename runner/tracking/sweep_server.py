"""The recorder process's side of a sweep: it begins and ends the parent run, and records whole runs."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from runner.trace import Trace
from runner.tracking import contract, delivery, fused_runs
from runner.tracking.store import bulk_runs, parent_runs
from runner.tracking.sweep_client import SETTLED, Arrays, Fields


def record(fields: Fields, arrays: Arrays) -> Fields:
    """Record the runs of a message."""
    parts: dict[int, dict[str, np.ndarray]] = defaultdict(dict)
    for key, values in arrays.items():
        i, _, name = key.partition("/")
        parts[int(i)][name] = values
    jobs = [
        bulk_runs.Job(
            contract.about_of(said["about"]), Trace.from_arrays(0, parts[i]), said["tags"], said["metrics"], said["key"]
        )
        for i, said in enumerate(fields["jobs"])
    ]
    return fused_runs.record(fields["keys"], jobs, fields["settings"])


def begin(fields: Fields, _: Arrays) -> Fields:
    """Begin a sweep, and send in a thread the runs that earlier commands left in the outbox."""
    begun = parent_runs.begin(**fields)
    keys = fields["keys"]
    threading.Thread(target=delivery.quietly, args=(Path(keys["pending"]), Path(), keys["uri"]), daemon=True).start()
    return begun


def settled(fields: Fields, _: Arrays) -> Fields:
    """Send what dead processes left of these jobs. Return the experiment's runs, and whether another process is sending one."""
    busy = delivery.left_by(set(fields["identities"]), Path(fields["pending"]), SETTLED, fields["uri"])
    return {"busy": busy, **parent_runs.found(fields["uri"], fields["experiment"])}


# The handler of each message.
Answers = Mapping[str, Callable[[Fields, Arrays], Fields]]
ANSWERS: Answers = {
    "sweep_known": lambda fields, _: parent_runs.found(**fields),
    "sweep_settled": settled,
    "sweep_metrics": lambda fields, _: {"metrics": parent_runs.metrics(**fields)},
    "sweep_begin": begin,
    "sweep_record": record,
    "sweep_end": lambda fields, _: parent_runs.end(**fields),
}
