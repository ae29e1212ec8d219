"""The `begin` message of a run, and the run of that message in the store."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from runner.security import secrets
from runner.tracking import contract, journal, store
from runner.tracking.store import heartbeat
from runner.tracking.store.retry import Retry

# MLflow's view type of all runs, deleted or not.
ALL = 3
# Runs whose creation was requested more than once, by id: their experiment and key.
REPEATED: dict[str, tuple[str, str]] = {}


def found(client: Any, experiment_id: str, run_key: str) -> str | None:
    """Return the id of the run with this key, or None; a deleted run only if there is no other."""
    runs = client.search_runs([experiment_id], f"tags.run_key = '{run_key}'", run_view_type=ALL, max_results=100)
    return min(runs, key=lambda run: run.info.lifecycle_stage != "active").info.run_id if runs else None


def delete_others(client: Any, run_id: str) -> None:
    """Delete the empty runs of the same key: a store may create a run long after a request that was repeated meanwhile."""
    experiment_id, run_key = REPEATED[run_id]
    for run in client.search_runs([experiment_id], f"tags.run_key = '{run_key}'"):
        if run.info.run_id != run_id and not run.data.metrics:
            client.delete_run(run.info.run_id)


def interrupted(client: Any, experiment_id: str, identity: str) -> list[dict[str, Any]]:
    """Return the interrupted runs with this config digest and a journal here, the newest first.

    `silent` is the heartbeat that `heartbeat.still` is to watch, for a run that may be going on on another machine; else None.
    """
    words = f"tags.identity = '{identity}' and attributes.status != 'FINISHED'"
    runs = []
    for run in client.search_runs([experiment_id], words, order_by=["attributes.start_time DESC"], max_results=100):
        tags = run.data.tags
        folder, key = tags.get("folder", ""), tags.get("run_key", "")
        # The folder may be one of another machine, or hold another run by now.
        if run.info.status in ("KILLED", "RUNNING") and journal.run_key(Path(folder)) == key:
            watch = {
                "beat": tags.get(heartbeat.BEAT),
                "every": float(tags.get(heartbeat.EVERY, 0)),
                "host": tags.get(heartbeat.HOST),
            }
            elsewhere = run.info.status == "RUNNING" and tags.get(heartbeat.HOST) != socket.gethostname()
            silent = watch if elsewhere else None
            runs.append({"run_id": run.info.run_id, "folder": folder, "run_key": key, "silent": silent})
    return runs


class Begin(NamedTuple):
    """The `begin` message of a journal: the run's description, and where the run is recorded."""

    about: contract.About
    run_key: str
    host: str
    keys: Mapping[str, Any]  # of the tracking group; `uri` is valid in any folder

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Begin:
        """Return the message with these fields."""
        return cls(contract.about_of(fields["about"]), fields["run_key"], fields["host"], fields["keys"])

    def opened(self) -> tuple[Any, str]:
        """Return a client of the store and the experiment's id; raises UserError."""
        return store.opened(self.keys["uri"], self.keys["experiment"])

    def run(self, retry: Retry, at: int, *, new: bool) -> tuple[Any, str]:
        """Return a client and the run's id; create the run if it is missing.

        A `new` run is looked for on a second attempt only.
        """
        client, experiment_id = self.opened()
        attempts = int(not new)

        def create() -> str:
            nonlocal attempts
            attempts += 1
            if attempts > 1 and (there := found(client, experiment_id, self.run_key)):
                return there
            name = secrets.masked(self.keys["name"] or self.about.name)
            # The parent of the recorder process is the process of the run.
            life = heartbeat.first_tags(self.keys["heartbeat"], os.getppid())
            tags = contract.tags_of(self.about, self.run_key, self.host) | life
            return client.create_run(experiment_id, at, tags, name).info.run_id

        run_id = retry(create)
        if attempts > 1 + int(not new):
            REPEATED[run_id] = experiment_id, self.run_key
        return client, run_id
