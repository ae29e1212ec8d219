"""The files of a run: its trajectory, and how files are stored as artifacts and read back."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from runner.errors import UserError, first_line
from runner.security import trust
from runner.trace import Trace, split

# The file of a run's rows.
TRAJECTORY = "trajectory.parquet"
# URI schemes that name a folder of this machine, or may resolve to one when the server is asked again.
HERE = ("", "file", "runs", "models")


def local(uri: str) -> Path | None:
    """Return the folder of an artifact URI, or None if it is not in this file system."""
    from mlflow.utils.file_utils import local_file_uri_to_path

    return Path(local_file_uri_to_path(uri)) if uri.startswith("file:") else None


def repository(client: Any, run_id: str) -> tuple[str, Any]:
    """Return the artifact URI of a run, and the repository that stores files there.

    Raises UserError if a server, which anybody may run, names a folder of this machine that the user does not name. The URI
    that was checked is the URI that is used: the server is not asked again.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    uri = client.get_run(run_id).info.artifact_uri
    if not hasattr(client._tracking_client.store, "engine") and urlsplit(uri).scheme.lower() in HERE:
        trust.artifacts(uri, local(uri))
    return uri, get_artifact_repository(uri, tracking_uri=client.tracking_uri)


def log(client: Any, run_id: str, path: Path, below: str | None = None) -> None:
    """Log a file as an artifact."""
    repository(client, run_id)[1].log_artifact(str(path), below)


def log_text(client: Any, run_id: str, text: str, name: str) -> None:
    """Log a text as an artifact called `name`."""
    kept = repository(client, run_id)[1]
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, name)
        path.write_text(text, encoding="utf-8")
        kept.log_artifact(str(path))


def log_file(client: Any, run_id: str, path: Path) -> None:
    """Log a file as an artifact: by a hard link if the artifacts are in the same file system, for a trajectory may be large.

    Raises UserError for a symbolic link, and for a path that is no regular file.
    """
    if path.is_symlink() or not path.is_file():
        raise UserError(f"{path} is no file, and is not logged; remove it")
    uri, kept = repository(client, run_id)
    folder = local(uri)
    try:
        if folder is None:
            raise OSError
        folder.mkdir(parents=True, exist_ok=True)
        # Replaces an artifact that was logged before.
        new = folder / f"{path.name}.{os.getpid()}"
        os.link(path, new)
        new.replace(folder / path.name)
        # A rename between two links of one file does nothing.
        new.unlink(missing_ok=True)
    except OSError:
        kept.log_artifact(str(path))


@contextmanager
def opened(client: Any, run_id: str, uri: str, name: str) -> Iterator[Path | None]:
    """Yield the path of an artifact, or of a copy that exists within this block; None if the run has no such artifact.

    Raises UserError if the artifact exists but cannot be fetched.
    """
    folder = local(uri)
    if folder is not None:
        yield folder / name if (folder / name).is_file() else None
        return
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    # This takes one request; a client's download_artifacts takes four.
    kept = get_artifact_repository(uri, tracking_uri=client.tracking_uri)
    with tempfile.TemporaryDirectory() as place:
        path: Path | None = Path(place, name)
        try:
            kept._download_file(name, str(path))
        except Exception as error:
            if any(each.path == name for each in kept.list_artifacts()):
                raise UserError(f"{name} of run {run_id} cannot be fetched: {first_line(error)}") from error
            path = None
        yield path


# Parquet's cost per column is high: 10,000 columns take minutes and gigabytes. More coordinates than this are one list column.
COLUMNS = 1000


def table(rows: Trace) -> Any:
    """Return rows as an Arrow table: columns step, loss, gradient_norm, x/0 …, gradient/0 …, then named and measured ones.

    A vector with more than COLUMNS coordinates is one column of fixed-size lists instead, such as `x` and `gradient`.
    """
    import pyarrow as pa

    columns: dict[str, Any] = {"step": rows.steps, "loss": rows.loss, "gradient_norm": rows.gradient_norm}
    for name, values in {"x": rows.x, "gradient": rows.gradient, **rows.named}.items():
        flat = values.reshape(len(rows), -1)
        if flat.shape[1] > COLUMNS:
            columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])
        else:
            columns |= split(name, flat)
    return pa.table({**columns, **rows.measured})


def coordinates(table: Any, name: str) -> np.ndarray:
    """Return the numbers of a scalar or a vector that `table` wrote, [n, d]: from columns `name/0 …`, or from one of lists."""
    if name in table.column_names:
        lists = table[name].combine_chunks()
        return lists.flatten().to_numpy().reshape(len(table), -1)
    count = sum(each.startswith(f"{name}/") for each in table.column_names)
    return np.stack([table[f"{name}/{i}"].to_numpy() for i in range(count)], axis=1)


class Trajectory:
    """A Parquet file of all rows, with the columns of `table`, written as the rows come."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writer: Any = None

    def write(self, rows: Trace) -> None:
        """Append rows as one row group."""
        import pyarrow.parquet as pq

        made = table(rows)
        if self.writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # A file that was logged before may be linked as an artifact, which stays whole.
            self.path.unlink(missing_ok=True)
            # Numbers hardly repeat, but their high bytes do: these options are four times as fast as Parquet's defaults, and
            # give smaller files.
            numbers = {path(field): "BYTE_STREAM_SPLIT" for field in made.schema} | {"step": "DELTA_BINARY_PACKED"}
            options = {"use_dictionary": False, "column_encoding": numbers, "compression": "zstd"}
            self.writer = pq.ParquetWriter(self.path, made.schema, **options)
        self.writer.write_table(made)

    def close(self) -> bool:
        """Complete the file, and return whether there is one."""
        if self.writer is not None:
            self.writer.close()
        return self.writer is not None


def path(field: Any) -> str:
    """Return the path of an Arrow field's numbers in Parquet."""
    import pyarrow as pa

    return f"{field.name}.list.element" if pa.types.is_fixed_size_list(field.type) else field.name
