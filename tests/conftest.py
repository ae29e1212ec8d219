"""What the tests share: the command line within this process, and the runs that it leaves in MLflow."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple

import pytest
from absl import logging as absl_logging
from omegaconf import OmegaConf

from runner.config import parameters
from runner.sweeps.sweep import Sweep
from runner.system import started

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# As the command line sets it before TensorFlow is imported, which a test module may do first here.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
# What tests write or define for themselves, and name in configurations.
OWN = ("askew", "bad", "fails", "mine", "own_data", "stranger", "test_check", "test_fused", "ways")
os.environ["RUNNER_ALLOW_TARGETS"] = ":".join(OWN)

# Hydra's logging setup closes all handlers, and this one, which TensorFlow brings, would close pytest's capture of stderr.
absl_logging.get_absl_handler().python_handler.stream = sys.__stderr__

REPORT, DRAWS = Sweep.report, parameters.draws
ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"


def strategies(without_optimizer: bool) -> dict[str, Any]:
    """Return the strategies of conf/ by name: those that take their own steps, or those that leave them to an optimizer."""
    found = {}
    for path in sorted((CONF / "strategy").glob("*.yaml")):
        node = OmegaConf.load(path)
        node.pop("defaults", None)
        if getattr(resolve_name(node._target_), "without_optimizer", False) == without_optimizer:
            found[path.stem] = node
    return found


class Ended(NamedTuple):
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an empty SQLite store, whose making takes MLflow seconds each time."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


def with_store(folder: Path, migrated: Path) -> Path:
    """Put an empty store into a folder, where commands look for it, and return the folder."""
    (folder / "outputs").mkdir(parents=True)
    shutil.copy(migrated, folder / "outputs")
    return folder


@pytest.fixture(autouse=True)
def forgotten(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Forget the modules that a test has written: another one's may bear the same name."""
    yield
    folder = str(tmp_path_factory.getbasetemp())
    for name, module in [*sys.modules.items()]:
        if (getattr(module, "__file__", None) or "").startswith(folder):
            del sys.modules[name]


@pytest.fixture
def prepared(tmp_path: Path, migrated: Path) -> Path:
    """Give a folder with nothing but an empty store."""
    return with_store(tmp_path, migrated)


@pytest.fixture
def cli(prepared: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run `python -m runner` with these words in a folder with nothing but a store, and in this process, to import once.

    Runs are not drawn and sweeps not reported, which takes seconds each; `drawn` and `reported` have them so.
    """
    monkeypatch.chdir(prepared)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setattr(parameters, "draws", lambda cfg, marks: False)
    monkeypatch.setattr(Sweep, "report", lambda sweep: None)
    # Where a test before took another folder for that of the command.
    monkeypatch.setattr(started, "_folder", None)

    def run(*words: str) -> Ended:
        from runner.cli import entry

        monkeypatch.setattr(sys, "argv", ["runner", *words])
        try:
            code = entry.main()
        except SystemExit as exit:
            code = exit.code if isinstance(exit.code, int) else 0 if exit.code is None else 1
        return Ended(code, *capfd.readouterr())

    return run


@pytest.fixture
def drawn(cli: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """Run `python -m runner` as `cli` does, with pictures of a run when it ends."""
    monkeypatch.setattr(parameters, "draws", DRAWS)
    return cli


@pytest.fixture
def reported(cli: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """Run `python -m runner` as `cli` does, with sweeps reported when they end."""
    monkeypatch.setattr(Sweep, "report", REPORT)
    return cli


@pytest.fixture
def runs(tmp_path: Path) -> Callable[[], list]:
    """Give the runs that commands left in this folder's store, the oldest first; not those that stand for sweeps."""

    def search() -> list:
        client = store(tmp_path)
        found = client.search_runs([each.experiment_id for each in client.search_experiments()])
        found = [run for run in found if "sweep" not in run.data.tags]
        return sorted(found, key=lambda run: (run.info.start_time, int(run.data.tags.get("job", 0))))

    return search


def store(folder: Path):
    """Return a client of the store that a command leaves in its folder."""
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{folder}/outputs/mlflow.db")


def history(folder: Path, run_id: str, metric: str) -> dict[int, float]:
    """Return a metric by step, and make sure that no step stands there twice."""
    rows = store(folder).get_metric_history(run_id, metric)
    found = {row.step: row.value for row in rows}
    assert len(found) == len(rows), f"{metric} has a step twice"
    return found


def environment(*folders: Path) -> dict[str, str]:
    """Return an environment in which a child finds this checkout, and these folders."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(("TF_CPP", "MLFLOW_TRACKING", "HYDRA"))}
    return own | {"PYTHONPATH": os.pathsep.join(map(str, [ROOT, *folders]))}


def own_loss(folder: Path, name: str, code: str) -> None:
    """Put a module of this name with a function `loss(x, *, way)` into a folder, and its YAML into `conf` beside it."""
    (folder / f"{name}.py").write_text(code)
    (folder / "conf/loss").mkdir(parents=True)
    (folder / f"conf/loss/{name}.yaml").write_text(f"_target_: {name}.loss\nway: 0\n")
