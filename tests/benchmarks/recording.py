"""The recording's parts: rows a second of MLflow's table of metrics, on SQLite, on PostgreSQL and by an MLflow server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np

from benchmarks import recorders
from benchmarks.charts import Panel, lines
from benchmarks.measure import Row, Target, rates
from benchmarks.recorders import Columns, Store


class Way(NamedTuple):
    """A way to record, and the number of steps that takes it about a second."""

    record: Callable[[Store, Columns], None]
    steps: int


class Place(NamedTuple):
    """A kind of store and the ways into it; the first is ours, the second its peer."""

    name: str
    open: Callable[[], AbstractContextManager[Store]]
    ways: Mapping[str, Way]
    target: Target


ITS_OWN = {"log_batch": Way(recorders.by_log_batch, 3_000), "log_metric": Way(recorders.by_log_metric, 30)}
SQLITE = Place(
    "SQLite",
    recorders.sqlite,
    {"runner": Way(recorders.by_runner, 50_000), "executemany": Way(recorders.by_executemany, 50_000), **ITS_OWN},
    Target("≥", 0.8),
)
POSTGRESQL = Place(
    "PostgreSQL",
    recorders.postgresql,
    {"runner": Way(recorders.by_runner, 50_000), "COPY": Way(recorders.by_copy, 50_000), **ITS_OWN},
    Target("≥", 0.3),
)
# Enough requests that the first and the last ones, which have the server to themselves, do not count.
BY_REQUESTS = {"runner": Way(recorders.by_runner, 12_000), "log_batch": Way(recorders.by_log_batch, 12_000)}
SERVER = Place("server on SQLite", lambda: recorders.http(recorders.sqlite), BY_REQUESTS, Target("≥", 2.0))
SERVER_ON_POSTGRESQL = SERVER._replace(name="server on PostgreSQL", open=lambda: recorders.http(recorders.postgresql))


def measured(store: Store, ways: Mapping[str, Way], steps: int, repeats: int) -> dict[str, np.ndarray]:
    """Return the rows a second of each way, none of which records more than so many steps."""
    return rates({name: recorders.contender(store, min(way.steps, steps), way.record) for name, way in ways.items()}, repeats)


def rows(part: str, places: tuple[Place, ...], quick: bool) -> Iterator[Row]:
    """Measure the recording of three metrics a step."""
    steps, repeats = (10, 1) if quick else (50_000, 5 if part == "http" else 9)
    for place in places:
        with place.open() as store:
            cell = f"3 metrics a step, {place.name}"
            yield Row(part, cell, "rows/s", measured(store, place.ways, steps, repeats), place.target)


def sqlite(quick: bool) -> Iterator[Row]:
    """Measure an SQLite store, ours beside Python's own SQLite module."""
    return rows("sqlite", (SQLITE,), quick)


def postgresql(quick: bool) -> Iterator[Row]:
    """Measure a PostgreSQL store, ours beside COPY."""
    return rows("postgresql", (POSTGRESQL,), quick)


def http(quick: bool) -> Iterator[Row]:
    """Measure an MLflow server, our requests under way at once beside one after another."""
    return rows("http", (SERVER, SERVER_ON_POSTGRESQL), quick)


def curves(quick: bool) -> list[Panel]:
    """Measure rows per second against the number of rows."""
    counts, repeats = ([1, 10], 1) if quick else ([10, 100, 1_000, 10_000, 100_000], 3)
    panels = []
    for place in (SQLITE, POSTGRESQL, SERVER):
        with place.open() as store:
            points = {}
            for steps in counts:
                # A way that would take more than some seconds has no point there.
                able = {name: Way(way.record, steps) for name, way in place.ways.items() if steps <= 4 * way.steps}
                points[3 * steps] = measured(store, able, steps, repeats)
            panels.append(Panel(place.name, "rows in one run", "rows per second", lines(points)))
    return panels
