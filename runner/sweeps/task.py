"""A sweep's task runs one job, in whichever process; its outcome is plain data that any process can hand on."""

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
    """What a job came to; `error` is the one line of a job that failed, and `log` the file that tells more.

    `skipped` is why a job's choices cannot go together: a sweep is a cross product, and some of its cells are empty.
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
    metrics: dict[str, float] = field(default_factory=dict)  # all single numbers that are recorded of the run, by name

    @classmethod
    def of(cls, result: Any, **known: Any) -> Outcome:
        """Return the outcome of a run's Result; `known` are the other fields."""
        names = ("stopped_by", "iterations", "last_loss", "best_loss")
        fields = {name: getattr(result, name) for name in names}
        return cls(**known, **fields, ending=result.ending.value, metrics=dict(result.summary))

    @property
    def failed(self) -> bool:
        """Whether the job should have a result, and has none."""
        return self.ending is None and self.skipped is None

    @property
    def interrupted(self) -> bool:
        """Whether a signal ended the job."""
        return self.stopped_by in SIGNALS


class Task:
    """A sweep's task: Hydra calls it with a job's configuration, in whichever process; it returns an Outcome, whatever happens.

    What the job prints goes to `console.txt` in its folder, an error with its traceback to its log; one line is printed. That a
    job has begun, and its outcome, stand in a file in `folder` too, for a launcher loses them where one of its workers dies.
    """

    def __init__(self, folder: Path, fail_fast: bool) -> None:
        self.cwd, self.folder, self.fail_fast = started.folder(), started.absolute(folder), fail_fast
        self.marks: dict[str, str] = {}
        # What of the configuration is the user's own word, wherever a job is composed.
        self.command = trust.COMMAND
        self.launcher = processes.name()
        # For a launcher in this process: what composes jobs, and what records together those that are tracked in this way.
        self.composed: Any = None
        self.recorder: Any = None
        self.tracking: DictConfig | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind what only the launching process uses."""
        return vars(self) | {"composed": None, "recorder": None, "tracking": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Arrive in another process, where Hydra is about to compose a job."""
        vars(self).update(state)
        streams.hold()
        # Ray's workers stand where the cluster was started, and paths are relative to where the sweep was.
        os.chdir(self.cwd)
        started.remember()
        schema.register()
        trust.arrive(self.command)
        os.umask(0o077)
        # joblib, Ray and ours tell a worker its share of the processors here, and TensorFlow does not look.
        for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
            os.environ.setdefault(name, os.environ.get("OMP_NUM_THREADS", "0"))
        orphans.end_with(self.launcher)

    def __call__(self, cfg: DictConfig) -> Outcome:
        """Run one job; raises Ended where the sweep is to end with it."""
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
        """Record jobs together that are tracked in this way, and return what does so; None where this way knows no sweeps."""
        self.recorder, self.tracking = tracker(tracking).sweep(), tracking
        return self.recorder

    def begin(self, number: int) -> None:
        """Write down that this process is at a job."""
        self.write(number, processes.name())

    def forget(self, number: int) -> None:
        """Take back that this process is at a job, if it has no outcome."""
        if (file := self.folder / f"{number}.json").exists() and "pid" in json.loads(file.read_text(encoding="utf-8")):
            file.unlink()

    def write(self, number: int, fields: Mapping[str, Any]) -> None:
        """Write down what is known of a job, at once or not at all."""
        file = self.folder / f"{number}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_suffix(f".{os.getpid()}")
        new.write_text(json.dumps(secrets.hidden(dict(fields))), encoding="utf-8")
        new.replace(file)

    def read(self, number: int) -> Outcome | bool:
        """Return a job's outcome; without one, whether it has begun. Waits for a process of this host that is at it."""
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
        """The folder of the sweep, in which the log of a job is that could not say where."""
        return str(self.folder.parents[1])

    def died(self, overrides: Sequence[str], error: BaseException) -> Outcome:
        """Return the outcome of a job whose process is gone."""
        return Outcome(tuple(overrides), error=f"its process died ({first_line(error)[:200]})", log=self.logs)

    def judge(self, outcomes: Sequence[Outcome]) -> None:
        """Raise Ended where one of these outcomes is to end the sweep."""
        for each in outcomes:
            if each.failed and self.fail_fast:
                raise Ended(each)


class Ended(BaseException):
    """A sweep that ends with a job: a signal came, or the job failed and `sweep.fail_fast` holds."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome)
        self.outcome = outcome


def attempt(cfg: DictConfig, marks: Mapping[str, str]) -> Outcome:
    """Run a job and return what it came to; no exception of the job's leaves this function but a KeyboardInterrupt."""
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
    # A loss may call sys.exit, or raise what is no Exception or cannot be pickled: only its text goes on.
    except BaseException as error:
        # To the log alone, which begins at this level; the console's begins above.
        logging.getLogger(__name__).info("the job failed", exc_info=True)
        return Outcome(**known, error=first_line(error), seconds=time.perf_counter() - began)
    return Outcome.of(result, **known, run_id=result.run_id, seconds=time.perf_counter() - began)


def as_outcome(overrides: Sequence[str], value: Any) -> Outcome:
    """Return what a launcher gave back for a job as an Outcome: what is none went wrong before the task began."""
    return value if isinstance(value, Outcome) else Outcome(tuple(overrides), error=first_line(value))


def line(outcome: Outcome) -> str:
    """Return an outcome as the one line that is printed of a job."""
    what = " ".join(shown(outcome.overrides)) or "the defaults"
    if outcome.skipped is not None:
        return f"{what}: skipped, {outcome.skipped}"
    if outcome.failed:
        return f"{what}: failed, {outcome.error}"
    return f"{what}: {outcome.ending} at step {outcome.iterations}, last loss {outcome.last_loss:.7g}"


def shown(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that tell jobs of a sweep apart, without secrets."""
    return [secrets.override(each) for each in overrides if not each.startswith("sweep.")]
