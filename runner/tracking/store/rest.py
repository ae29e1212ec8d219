"""Metrics through MLflow's own interface, in batches: one after another into any store, several at once to a server."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

from runner.tracking.store.database import Columns
from runner.tracking.store.retry import Retry

# What log_batch takes at a time.
BATCH = 1000
# Requests under way. A server has four workers unless told otherwise; more than that made it no faster.
REQUESTS = 4
ENDPOINT = "/api/2.0/mlflow/runs/log-batch"


def batches(columns: Columns, at: int) -> Iterator[list[dict[str, Any]]]:
    """Yield metrics of this time as the REST interface has them, step after step."""
    triples = (
        (key, *pair) for key, (steps, values) in columns.items() for pair in zip(steps.tolist(), values.tolist(), strict=True)
    )
    inorder = sorted(triples, key=lambda each: each[1])
    rows = [{"key": key, "step": step, "value": value, "timestamp": at} for key, step, value in inorder]
    for i in range(0, len(rows), BATCH):
        yield rows[i : i + BATCH]


def one_by_one(client: Any, run_id: str, retry: Retry) -> Callable[[Columns, int], None]:
    """Return a function that waits for each batch."""
    from mlflow.entities import Metric

    def write(columns: Columns, at: int) -> None:
        for batch in batches(columns, at):
            retry(partial(client.log_batch, run_id, metrics=[Metric(**each) for each in batch]))

    return write


@contextmanager
def at_once(client: Any, run_id: str, retry: Retry) -> Iterator[Callable[[Columns, int], None]]:
    """Give a function that has several batches under way to a server; at the end of this block all have arrived.

    A batch that fails is raised by a later write, or there. MLflow's own log_batch spends more on making the JSON than the
    server on reading it.
    """
    from mlflow.utils.rest_utils import http_request, verify_rest_response

    credentials = client._tracking_client.store.get_host_creds
    under_way: deque[Future[None]] = deque()

    def post(batch: list[dict[str, Any]]) -> None:
        body = {"run_id": run_id, "metrics": batch}
        request = partial(http_request, host_creds=credentials(), endpoint=ENDPOINT, method="POST", json=body)
        retry(lambda: verify_rest_response(request(), ENDPOINT))

    with ThreadPoolExecutor(REQUESTS) as pool:

        def write(columns: Columns, at: int) -> None:
            for batch in batches(columns, at):
                if len(under_way) >= 2 * REQUESTS:
                    under_way.popleft().result()
                under_way.append(pool.submit(post, batch))

        yield write
        while under_way:
            under_way.popleft().result()
