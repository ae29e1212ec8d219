"""Artifacts of recorded runs as files: where they lie, or fetched from a server for as long as they are read."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runner import artifacts
from runner.errors import UserError, first_line
from runner.reports.selection import Record

# Files that are read at once; of a server each has to be fetched.
THREADS = 8


def distinct(found: Iterable[Record]) -> dict[str, Record]:
    """Return one run of each loss, by what names it."""
    return {of_loss(each): each for each in reversed(list(found))}


def of_loss(record: Record) -> str:
    """Return what names a run's loss without its noise; a seed may draw its data."""
    named = {key: value for key, value in record.params.items() if key.startswith(("loss.", "instance.")) or key == "seed"}
    return json.dumps(named, sort_keys=True)


@contextmanager
def opened(client: Any, record: Record, name: str) -> Iterator[Path | None]:
    """Give an artifact's file, where it lies or fetched for as long as this block; None where the run has no such artifact.

    Raises UserError where there is one that cannot be fetched.
    """
    folder = artifacts.local(record.artifact_uri)
    if folder is not None:
        yield folder / name if (folder / name).is_file() else None
        return
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    # By one request; a client's download_artifacts takes four.
    store = get_artifact_repository(record.artifact_uri, tracking_uri=client.tracking_uri)
    with tempfile.TemporaryDirectory() as place:
        path: Path | None = Path(place, name)
        try:
            store._download_file(name, str(path))
        except Exception as error:
            if any(each.path == name for each in store.list_artifacts()):
                raise UserError(f"{name} of run {record.run_id} cannot be fetched: {first_line(error)}") from error
            path = None
        yield path


def configs(client: Any, found: Iterable[Record]) -> dict[str, str]:
    """Return the configuration of one run of each loss."""

    def text(record: Record) -> str | None:
        with opened(client, record, "config.yaml") as path:
            return None if path is None else path.read_text()

    one = distinct(found)
    with ThreadPoolExecutor(THREADS) as pool:
        texts = zip(one, pool.map(text, one.values()), strict=True)
        return {key: text for key, text in texts if text is not None}
