"""The recorder of a whole sweep: the launching process asks the recorder process to record it."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np

from runner.security import secrets
from runner.system import started
from runner.tracking import contract
from runner.tracking.contract import PENDING
from runner.tracking.store import bulk_runs

Fields = dict[str, Any]
Arrays = Mapping[str, np.ndarray]
# Limits of one message: bytes of rows (approximate), and runs.
MESSAGE, RUNS = 2**25, 250
# Messages that may be unanswered at a time.
AHEAD = 2
# Seconds until a store must show the last messages of dead processes.
SETTLED = 5.0


class SweepRecorder:
    """Records a sweep through the recorder process. The keys are those of the tracking group."""

    def __init__(self, started: Callable[[], Any], **settings: Any) -> None:
        """`started` returns the recorder process, a new one if the first has died."""
        self.started, self.settings = started, settings
        self.keys = {name: settings.pop(name) for name in ("uri", "experiment", "heartbeat", "flush_timeout", "pending")}
        self.where = {name: self.keys[name] for name in ("uri", "experiment")}
        self.uri, self.run_id, self.experiment_id = self.keys["uri"], None, None
        self.pending = Path(self.keys["pending"])

    @property
    def process(self) -> Any:
        """Return the recorder process."""
        return self.started()

    def known(self) -> dict[str, Fields]:
        """Return the runs of the experiment by config digest, without beginning a sweep."""
        return self.process.ask("sweep_known", self.where)["known"]

    def settled(self, identities: Set[str], before: Mapping[str, Fields]) -> dict[str, Fields]:
        """Return by config digest the runs of these started jobs whose processes are gone, if they changed since `before`.

        The recorder of a dead process, or the server, may still complete requests; joblib ends recorders too, and their
        journals are sent. A run that is RUNNING or missing is waited for while a recorder works on one, and SETTLED seconds
        more.
        """
        until = time.monotonic() + SETTLED
        where = {**self.where, "identities": sorted(identities), "pending": self.keys["pending"]}
        while True:
            found = self.process.ask("sweep_settled", where)
            until = time.monotonic() + SETTLED if found["busy"] else until
            runs = {each: found["known"][each] for each in identities & found["known"].keys()}
            new = {each: run for each, run in runs.items() if run != before.get(each)}
            ended = sum(run["status"] != "RUNNING" for run in new.values())
            if time.monotonic() > until or ended == len(identities):
                return new
            time.sleep(0.2)

    def begin(self, name: str, tags: Mapping[str, str]) -> dict[str, Fields]:
        """Create the sweep's parent run. Return by config digest the runs that were there before."""
        begun = self.process.ask("sweep_begin", {"keys": self.keys, "name": name, "tags": dict(tags)})
        self.run_id, self.experiment_id = begun["run_id"], begun["experiment_id"]
        return begun["known"]

    def metrics(self, run_ids: Iterable[str]) -> dict[str, dict[str, float]]:
        """Return the scalar results of runs, by run id."""
        return self.process.ask("sweep_metrics", {"uri": self.uri, "run_ids": list(run_ids)})["metrics"]

    def record(self, jobs: Iterable[bulk_runs.Job]) -> list[str | None]:
        """Record whole runs while the next ones are made. Return their ids, and warn how many could not be sent."""
        answers: list[Fields] = []
        waiting, process = 0, self.process
        for part in pieces(jobs):
            # Unread answers would fill the pipe, and both processes would wait for each other.
            if waiting > AHEAD:
                answers.append(process.answer())
                waiting -= 1
            arrays = {f"{i}/{name}": array for i, job in enumerate(part) for name, array in job.rows.arrays.items()}
            said = [
                {"about": contract.fields_of(job.about), "tags": dict(job.tags), "metrics": dict(job.metrics), "key": job.key}
                for job in part
            ]
            fields = {"keys": self.keys, "jobs": said, "settings": self.settings, "cwd": str(started.folder())}
            process.say("sweep_record", fields, arrays)
            waiting += 1
        answers += [process.answer() for _ in range(waiting)]
        if unsent := sum(each["unsent"] for each in answers):
            why = next(each["left"] for each in answers if each["left"])
            warn(f"{unsent} runs could not be sent, {why}; send them with: {self.command()}")
        return [run_id for each in answers for run_id in each["run_ids"]]

    def command(self) -> str:
        """Return the command that sends the outbox."""
        usual = self.pending == started.absolute(PENDING)
        return "python -m runner.sync" + ("" if usual else f" --pending {shlex.quote(str(self.pending))}")

    def end(self, status: str, tags: Mapping[str, str], metrics: Mapping[str, float], table: Mapping[str, list]) -> None:
        """End the sweep's parent run."""
        said = {"status": status, "tags": dict(tags), "metrics": dict(metrics), "table": dict(table)}
        if left := self.process.ask("sweep_end", {"keys": self.keys, "run_id": self.run_id, **said})["left"]:
            warn(f"the sweep's own run {self.run_id} could not be sent as a whole, {left}; send it with: {self.command()}")

    def losses(self) -> dict[str, Any]:
        """Return the configurations that name the losses of the sweep's runs."""
        return self.process.ask("sweep_losses", {"uri": self.uri, "run_id": self.run_id})["configs"]

    def report(self, facts: Mapping[str, Any] | None) -> list[str]:
        """Have the sweep's report written, and return its lines. `facts` are those of the losses, if they are known."""
        where: Fields = {"uri": self.uri, "run_id": self.run_id}
        return self.process.ask("sweep_report", where if facts is None else {**where, "facts": facts})["lines"]


def warn(text: str) -> None:
    """Print a warning to standard error, independently of the log's handlers."""
    secrets.tell(f"WARNING: {text}", sys.stderr)


def pieces(jobs: Iterable[bulk_runs.Job]) -> Iterator[list[bulk_runs.Job]]:
    """Yield the jobs in lists that fit into a message each."""
    part: list[bulk_runs.Job] = []
    size = 0
    for job in jobs:
        part.append(job)
        size += 2 * job.rows.x.nbytes
        if size > MESSAGE or len(part) == RUNS:
            yield part
            part, size = [], 0
    if part:
        yield part
