"""A tracker that records in the run's own process, without a journal: for what a test or a benchmark replaces in it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from runner.tracking import replay, store
from runner.tracking.contract import About, Recorder, abandoned, clock, tags_of


@contextmanager
def mlflow(about: About, *, uri: str, experiment: str, every: int, max_coordinates: int, **_: Any) -> Iterator[Recorder]:
    client, experiment_id = store.opened(uri, experiment)
    run_id = client.create_run(experiment_id, run_name=about.name, tags=tags_of(about, uuid.uuid4().hex)).info.run_id
    run = replay.Run(client, run_id)
    try:
        run.begin(about, replay.Settings(every, max_coordinates))
        record = lambda rows: run.record(rows, clock())  # noqa: E731
        finish = lambda tags, metrics: run.finish(tags, metrics, clock())  # noqa: E731
        yield Recorder(record, finish, run_id, experiment_id, uri, run.report)
    except BaseException as error:
        run.fail(*abandoned(error))
        raise
    finally:
        run.end(clock())
