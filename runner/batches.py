"""Metrics through MLflow's own interface, in batches: one after another into any store, several at once to a server."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from runner.bulk import Columns

# What log_batch takes at a time.
BATCH = 1000
# Requests under way. A server has four workers unless told otherwise; more than that made it no faster.
REQUESTS = 4
ENDPOINT = "/api/2.0/mlflow/runs/log-batch"


def batches(columns: Columns) -> Iterator[list[dict[str, Any]]]:
    """Yield metrics as the REST interface has them, step after step."""
    now = time.time_ns() // 1_000_000
    triples = (
        (key, *pair) for key, (steps, values) in columns.items() for pair in zip(steps.tolist(), values.tolist(), strict=True)
    )
    inorder = sorted(triples, key=lambda each: each[1])
    rows = [{"key": key, "step": step, "value": value, "timestamp": now} for key, step, value in inorder]
    for i in range(0, len(rows), BATCH):
        yield rows[i : i + BATCH]


def one_by_one(client: Any, run_id: str) -> Callable[[Columns], None]:
    """Return a function that waits for each batch."""
    from mlflow.entities import Metric

    def write(columns: Columns) -> None:
        for batch in batches(columns):
            client.log_batch(run_id, metrics=[Metric(**each) for each in batch])

    return write


@contextmanager
def at_once(client: Any, run_id: str) -> Iterator[Callable[[Columns], None]]:
    """Give a function that has several batches under way to a server; at the end of this block all have arrived.

    A batch that fails is raised by a later write, or there. MLflow's own log_batch spends more on making the JSON than the
    server on reading it.
    """
    from mlflow.utils.rest_utils import http_request, verify_rest_response

    credentials = client._tracking_client.store.get_host_creds
    under_way: deque[Future[None]] = deque()

    def post(batch: list[dict[str, Any]]) -> None:
        body = {"run_id": run_id, "metrics": batch}
        verify_rest_response(http_request(host_creds=credentials(), endpoint=ENDPOINT, method="POST", json=body), ENDPOINT)

    with ThreadPoolExecutor(REQUESTS) as pool:

        def write(columns: Columns) -> None:
            for batch in batches(columns):
                if len(under_way) >= 2 * REQUESTS:
                    under_way.popleft().result()
                under_way.append(pool.submit(post, batch))

        yield write
        while under_way:
            under_way.popleft().result()
