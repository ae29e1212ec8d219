"""Read a recorded run from its tracking store: its parameters, tags, configuration and every row."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from runner.errors import UserError, first_line
from runner.security import secrets, uris, yaml_limits
from runner.system import folders
from runner.trace import Trace
from runner.tracking import store
from runner.tracking.store import artifacts, preflight

# The runner's default store, as in conf/tracking/mlflow.yaml.
URI = "sqlite:///outputs/mlflow.db"
# The tag of the commit; a tag `version.…` holds each version.
COMMIT = "mlflow.source.git.commit"
# Exit codes, as diff(1) has them.
SAME, DIFFERENT, TROUBLE = 0, 1, 2


@dataclass(frozen=True)
class Recorded:
    """A run with all its rows."""

    run_id: str
    name: str
    params: dict[str, str]
    tags: dict[str, str]
    config: str  # resolved, YAML
    rows: Trace

    @property
    def versions(self) -> dict[str, str]:
        """The versions and the commit with which the run was recorded."""
        return {key: value for key, value in self.tags.items() if key.startswith("version.")} | {
            "commit": self.tags.get(COMMIT, "")
        }


def where() -> str:
    """Return the URI of the store that is read if the command names none."""
    return os.environ.get("MLFLOW_TRACKING_URI") or URI


def client(uri: str) -> Any:
    """Return a client of an existing store; raises UserError if there is no such store."""
    file = store.sqlite_file(uri)
    if file is not None and not file.is_file():
        raise UserError(f"there is no store {uris.hidden(uri)}; name it with --tracking-uri or MLFLOW_TRACKING_URI")
    # MLflow reads this variable at import.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    if file is None:
        preflight.check(uri)
    try:
        return store.client_of(uri)
    except Exception as error:
        raise preflight.refusal(uri, first_line(error)) from error


def read(client: Any, prefix: str) -> Recorded:
    """Return the run whose id begins with `prefix`; raises UserError for no run, several runs, or a run without rows."""
    run = find(client, prefix)
    params, tags = dict(run.data.params), dict(run.data.tags)
    files = {each.path for each in client.list_artifacts(run.info.run_id)}
    if not {"trajectory.parquet", "config.yaml"} <= files:
        ended = tags.get("error") or f"its status is {run.info.status}"
        raise UserError(f"run {run.info.run_id} has no trajectory.parquet and config.yaml ({ended})")
    path, config = (Path(client.download_artifacts(run.info.run_id, name)) for name in ("trajectory.parquet", "config.yaml"))
    return Recorded(run.info.run_id, run.info.run_name, params, tags, yaml_limits.checked(config), trajectory(path))


def find(client: Any, prefix: str) -> Any:
    """Return the one run whose id begins with `prefix`; raises UserError for no run or several runs."""
    if not prefix.isalnum():
        raise UserError(f"a run is named by its id, or the beginning of it, got {prefix!r}")
    experiments = [each.experiment_id for each in client.search_experiments()]
    found = client.search_runs(experiments, f"attributes.run_id LIKE '{prefix}%'", max_results=2)
    if not found:
        raise UserError(f"no run's id begins with {prefix!r} in {client.tracking_uri}")
    if len(found) > 1:
        raise UserError(f"more than one run's id begins with {prefix!r}; give more of it")
    return found[0]


def trajectory(path: Path) -> Trace:
    """Return the rows of a trajectory.parquet: x, loss and gradient of each."""
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        x, gradient = (artifacts.coordinates(table, name) for name in ("x", "gradient"))
        return Trace(table["step"][0].as_py(), x, table["loss"].to_numpy(), gradient)
    except (KeyError, IndexError, ValueError, OSError) as error:
        raise UserError(f"{path.name} cannot be read: {first_line(error)}") from error


class Parser(argparse.ArgumentParser):
    """Options of a command on recorded runs; an error is one line."""

    def __init__(self, command: str, about: str, tolerance: str | None = None) -> None:
        super().__init__(prog=f"python -m runner.{command}", description=about)
        self.add_argument("--tracking-uri", metavar="URI", default=where(), help="where the runs are; %(default)s")
        if tolerance is not None:
            self.add_argument("--tolerance", type=relative, metavar="T", help=tolerance)

    def error(self, message: str) -> NoReturn:
        """Print an error in one line, and end the command."""
        secrets.tell(f"error: {message}; --help tells more", sys.stderr)
        sys.exit(TROUBLE)


def relative(text: str) -> float:
    """Return a relative tolerance, which must be finite and 0 or more."""
    value = float(text)
    if not 0 <= value < np.inf:
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {text}")
    return value


def answered(work: Any, words: Sequence[str] | None = None) -> int:
    """Do a command's work and return its exit code; an error is printed as one line."""
    try:
        with folders.unshared():
            return work(words)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0"):
            raise
        secrets.tell(f"error: {first_line(error)}", sys.stderr)
        return TROUBLE
