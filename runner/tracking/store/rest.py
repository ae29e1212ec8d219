"""Metrics through MLflow's own interface, in batches: one after another to any store, several at once to a server."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

from runner.tracking.store.database import Columns
from runner.tracking.store.retry import Retry

# Metrics that log_batch takes at a time.
BATCH = 1000
# Requests at a time. A server has four workers by default; more requests made it no faster.
REQUESTS = 4
ENDPOINT = "/api/2.0/mlflow/runs/log-batch"


def batches(columns: Columns, at: int) -> Iterator[list[dict[str, Any]]]:
    """Yield batches of metrics of this time in the form of the REST interface, ordered by step."""
    triples = (
        (key, *pair) for key, (steps, values) in columns.items() for pair in zip(steps.tolist(), values.tolist(), strict=True)
    )
    inorder = sorted(triples, key=lambda each: each[1])
    rows = [{"key": key, "step": step, "value": value, "timestamp": at} for key, step, value in inorder]
    for i in range(0, len(rows), BATCH):
        yield rows[i : i + BATCH]


def one_by_one(client: Any, run_id: str, retry: Retry) -> Callable[[Columns, int], None]:
    """Return a function that writes batches one after another, and waits for each."""
    from mlflow.entities import Metric

    def write(columns: Columns, at: int) -> None:
        for batch in batches(columns, at):
            retry(partial(client.log_batch, run_id, metrics=[Metric(**each) for each in batch]))

    return write


@contextmanager
def at_once(client: Any, run_id: str, retry: Retry) -> Iterator[Callable[[Columns, int], None]]:
    """Yield a function that sends several batches at once to a server; at the end of this block all have arrived.

    A later write, or the end of the block, raises the error of a batch. MLflow's own log_batch spends more time on making the
    JSON than the server on reading it.
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
