"""Rows, parameters and tags in MLflow's form, and the fastest way to add metrics that a store offers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from runner.trace import Trace
from runner.tracking.store import database, rest
from runner.tracking.store.retry import Retry
from runner.tracking.store.retry import once as once_only

# Characters that a parameter of MLflow's holds.
PARAM_LENGTH = 6000


def once(metrics: Mapping[str, float]) -> database.Columns:
    """Return the finite ones of these numbers as metrics at step 0."""
    return {key: (np.zeros(1, int), np.array([value])) for key, value in metrics.items() if np.isfinite(value)}


def columns_of(rows: Trace, every: int, max_coordinates: int) -> database.Columns:
    """Return steps and values of each metric: every `every`-th row, and all rows of measured quantities.

    Values that are not finite are left out: MLflow's pages break on them.
    """
    found = {}
    for key, values in rows.columns(max_coordinates).items():
        kept = slice(None) if key in rows.measured else slice(-rows.start % every, None, every)
        finite = np.isfinite(values[kept])
        found[key] = rows.steps[kept][finite], values[kept][finite]
    return found


def direct(client: Any) -> database.Insert | None:
    """Return `database.inserter`, or None with a warning if the tests do not cover the schema of the database."""
    try:
        return database.inserter(client)
    except database.UnknownSchema as error:
        logging.getLogger(__name__).warning("%s: recording goes the slower way, by log_batch", error)
        return None


@contextmanager
def writer(client: Any, run_id: str, retry: Retry = once_only) -> Iterator[Callable[[database.Columns, int], None]]:
    """Yield the fastest function that adds metrics of a time to a run; all have arrived at the end of this block."""
    insert = direct(client)
    if insert is not None:
        into = client._tracking_client.store
        yield lambda columns, at: retry(partial(database.write, into, insert, run_id, columns, at))
    elif hasattr(client._tracking_client.store, "get_host_creds"):
        with rest.at_once(client, run_id, retry) as write:
            yield write
    else:
        yield rest.one_by_one(client, run_id, retry)


def cut(params: Mapping[str, str]) -> dict[str, str]:
    """Return parameters, cut to the length that MLflow accepts; config.yaml has them whole."""
    return {key: value[:PARAM_LENGTH] for key, value in params.items()}


def log_params(client: Any, run_id: str, params: Mapping[str, str]) -> None:
    """Log parameters in batches of 100, the most that MLflow accepts."""
    from mlflow.entities import Param

    entities = [Param(key, value) for key, value in cut(params).items()]
    for i in range(0, len(entities), 100):
        client.log_batch(run_id, params=entities[i : i + 100])


def log_tags(client: Any, run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags in one call."""
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
