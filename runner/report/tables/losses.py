"""The losses of recorded runs: the key of a loss, and the configuration of one run of each."""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from runner.errors import UserError
from runner.report.tables.describing import parameters
from runner.report.tables.selection import Record
from runner.security import yaml_limits
from runner.tracking.store import artifacts

# Files that are read at the same time; with a server, each file has to be fetched.
THREADS = 8


def distinct(found: Iterable[Record]) -> dict[str, Record]:
    """Return one run of each loss, by the loss's key."""
    return {of_loss(each): each for each in reversed(list(found))}


def of_loss(record: Record) -> str:
    """Return the key of a run's loss without its noise; it includes the seed, by which the loss's data may be drawn."""
    named = {key: value for key, value in parameters(record).items() if key.startswith(("loss.", "instance.")) or key == "seed"}
    return json.dumps(named, sort_keys=True)


def configs(client: Any, found: Iterable[Record]) -> dict[str, str]:
    """Return the configuration of one run of each loss, by the loss's key."""

    def text(record: Record) -> str | None:
        with artifacts.opened(client, record.run_id, record.artifact_uri, "config.yaml") as path:
            if path is None:
                return None
            # A configuration that is too large (somebody else wrote it) must not prevent the report.
            with suppress(UserError):
                return yaml_limits.checked(path)
            return None

    one = distinct(found)
    with ThreadPoolExecutor(THREADS) as pool:
        texts = zip(one, pool.map(text, one.values()), strict=True)
        return {key: text for key, text in texts if text is not None}
