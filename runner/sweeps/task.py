"""The task of a sweep: it runs one job in any process, and returns its outcome as plain data that can be pickled."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from runner.cli.job import SIGNALS, run, tracker
from runner.config import parameters, schema
from runner.errors import Incompatible, first_line
from runner.security import secrets, streams, trust
from runner.system import orphans, processes, started


@dataclass(frozen=True)
class Outcome:
    """The outcome of a job. For a failed job, `error` is the error in one line and `log` the file with the details.

    `skipped` is the reason why the job's choices are incompatible: a sweep is a cross product, and some of its cells are empty.
    """

    overrides: tuple[str, ...]
    identity: str = ""
    run_id: str | None = None
    ending: str | None = None
    stopped_by: str | None = None
    iterations: int | None = None
    last_loss: float | None = None
    best_loss: float | None = None
    seconds: float | None = None
    error: str | None = None
    log: str | None = None
    reused: bool = False
    skipped: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)  # all scalar metrics that are recorded of the run, by name

    @classmethod
    def of(cls, result: Any, **known: Any) -> Outcome:
        """Return the outcome of a run's Result; `known` are the other fields."""
        names = ("stopped_by", "iterations", "last_loss", "best_loss")
        fields = {name: getattr(result, name) for name in names}
        return cls(**known, **fields, ending=result.ending.value, metrics=dict(result.summary))

    @property
    def failed(self) -> bool:
        """Whether the job has no result, although it was not skipped."""
        return self.ending is None and self.skipped is None

    @property
    def interrupted(self) -> bool:
        """Whether a signal ended the job."""
        return self.stopped_by in SIGNALS


class Task:
    """The task of a sweep: Hydra calls it with a job's configuration in any process; a failed job returns an Outcome too.

    The job's output goes to `console.txt` in the job's folder, and an error with its traceback to the job's log. The task
    prints one line for the job. A file in `folder` records that the job has begun, and later its outcome, because a launcher
    loses both if one of its workers dies.
    """

    def __init__(self, folder: Path, fail_fast: bool) -> None:
        self.cwd, self.folder, self.fail_fast = started.folder(), started.absolute(folder), fail_fast
        self.marks: dict[str, str] = {}
        # The user's command. It shows which values the user gave and which come from a file, in every process.
        self.command = trust.COMMAND
        self.launcher = processes.name()
        # For a launcher in this process: the Composer, and the recorder of all jobs whose tracking configuration is `tracking`.
        self.composed: Any = None
        self.recorder: Any = None
        self.tracking: DictConfig | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle, without the attributes that only the launching process uses."""
        return vars(self) | {"composed": None, "recorder": None, "tracking": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the task in a worker process and prepare the process, before Hydra composes a job there."""
        vars(self).update(state)
        streams.hold()
        # A Ray worker starts in the folder where the cluster was started, but paths are relative to the folder of the sweep.
        os.chdir(self.cwd)
        started.remember()
        schema.register()
        trust.arrive(self.command)
        os.umask(0o077)
        # joblib, Ray and our launchers set a worker's share of the processors in OMP_NUM_THREADS, which TensorFlow ignores.
        for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
            os.environ.setdefault(name, os.environ.get("OMP_NUM_THREADS", "0"))
        orphans.end_with(self.launcher)

    def __call__(self, cfg: DictConfig) -> Outcome:
        """Run one job and return its outcome; raises Ended if the outcome ends the sweep."""
        number = HydraConfig.get().job.num
        self.begin(number)
        outcome = attempt(cfg, self.marks)
        started.come_back()
        self.write(number, asdict(outcome))
        secrets.tell(line(outcome))
        orphans.leave()
        if outcome.interrupted or (outcome.failed and self.fail_fast):
            raise Ended(outcome)
        return outcome

    def record_by(self, tracking: DictConfig) -> Any:
        """Return the recorder of all jobs with this tracking configuration; None if this tracking does not support sweeps."""
        self.recorder, self.tracking = tracker(tracking).sweep(), tracking
        return self.recorder

    def begin(self, number: int) -> None:
        """Write to the job's file that this process runs the job."""
        self.write(number, processes.name())

    def forget(self, number: int) -> None:
        """Remove the job's file, unless it holds an outcome."""
        if (file := self.folder / f"{number}.json").exists() and "pid" in json.loads(file.read_text(encoding="utf-8")):
            file.unlink()

    def write(self, number: int, fields: Mapping[str, Any]) -> None:
        """Write fields to the job's file, atomically and without secrets."""
        file = self.folder / f"{number}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_suffix(f".{os.getpid()}")
        new.write_text(json.dumps(secrets.hidden(dict(fields))), encoding="utf-8")
        new.replace(file)

    def read(self, number: int) -> Outcome | bool:
        """Return a job's outcome from its file; if there is none, return whether the job has begun.

        If a live process of this host runs the job, wait until it writes the outcome or ends.
        """
        file = self.folder / f"{number}.json"
        while file.exists():
            fields = json.loads(file.read_text(encoding="utf-8"))
            if "pid" not in fields:
                return Outcome(**fields | {"overrides": tuple(fields["overrides"])})
            if fields["host"] != socket.gethostname() or not processes.there(fields):
                return True
            time.sleep(orphans.INTERVAL / 2)
        return False

    @property
    def logs(self) -> str:
        """The folder of the sweep: the place of the log of a job that died before it could report the log's path."""
        return str(self.folder.parents[1])

    def died(self, overrides: Sequence[str], error: BaseException) -> Outcome:
        """Return the outcome of a job whose process died."""
        return Outcome(tuple(overrides), error=f"its process died ({first_line(error)[:200]})", log=self.logs)

    def judge(self, outcomes: Sequence[Outcome]) -> None:
        """Raise Ended if one of these outcomes failed and `fail_fast` is set."""
        for each in outcomes:
            if each.failed and self.fail_fast:
                raise Ended(each)


class Ended(BaseException):
    """The outcome of a job ends the sweep: a signal ended the job, or the job failed and `sweep.fail_fast` is set."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome)
        self.outcome = outcome


def attempt(cfg: DictConfig, marks: Mapping[str, str]) -> Outcome:
    """Run a job and return its outcome; of the job's exceptions, only KeyboardInterrupt is raised."""
    from rich.console import Console

    hydra_cfg = HydraConfig.get()
    folder, overrides = Path(hydra_cfg.runtime.output_dir), tuple(hydra_cfg.overrides.task)
    log, began = folder / f"{hydra_cfg.job.name}.log", time.perf_counter()
    known: dict[str, Any] = {"overrides": overrides, "log": str(log)}
    try:
        known["identity"] = parameters.digest(parameters.resolved(cfg))
        with secrets.unlinked(folder / "console.txt").open("a", encoding="utf-8") as file:
            result = run(cfg, Console(file=file, width=200), {**marks, "job": str(hydra_cfg.job.num)})
    except KeyboardInterrupt:
        raise
    except Incompatible as misfit:
        return Outcome(**known, skipped=first_line(misfit), seconds=time.perf_counter() - began)
    # A loss may call sys.exit, or raise a BaseException or an error that cannot be pickled. So the outcome holds only the text.
    except BaseException as error:
        # The log records this level; the console shows only higher levels.
        logging.getLogger(__name__).info("the job failed", exc_info=True)
        return Outcome(**known, error=first_line(error), seconds=time.perf_counter() - began)
    return Outcome.of(result, **known, run_id=result.run_id, seconds=time.perf_counter() - began)


def as_outcome(overrides: Sequence[str], value: Any) -> Outcome:
    """Return a launcher's return value as an Outcome; any other value is an error from before the task began."""
    return value if isinstance(value, Outcome) else Outcome(tuple(overrides), error=first_line(value))


def line(outcome: Outcome) -> str:
    """Return the line that is printed for a job."""
    what = " ".join(shown(outcome.overrides)) or "the defaults"
    if outcome.skipped is not None:
        return f"{what}: skipped, {outcome.skipped}"
    if outcome.failed:
        return f"{what}: failed, {outcome.error}"
    return f"{what}: {outcome.ending} at step {outcome.iterations}, last loss {outcome.last_loss:.7g}"


def shown(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that distinguish the jobs of a sweep (without `sweep.…`), with their secrets masked."""
    return [secrets.override(each) for each in overrides if not each.startswith("sweep.")]
