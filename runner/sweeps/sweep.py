"""A sweep with any launcher: finished jobs are reused, a failed job does not affect the others, and all jobs are reported."""

from __future__ import annotations

import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from omegaconf import DictConfig, OmegaConf

from runner.cli.job import SWEPT, prepare
from runner.config import parameters
from runner.errors import UserError, first_line
from runner.fused import manifest
from runner.security import secrets, targets
from runner.sweeps import composer
from runner.sweeps.claims import Claims
from runner.sweeps.task import Ended, Outcome, Task, as_outcome, shown
from runner.system import quiet, startup
from runner.tracking import store

Overrides = Sequence[str]
# With more runs than this, a message announces the report, because it takes long.
MANY = 500
# Hydra's own overrides that are repeated in the command that continues a sweep.
LAUNCHER = ("hydra/launcher=", "hydra.launcher.")


class Sweep:
    """Launches jobs in batches; `overrides` are those of the whole sweep, and `task` is the launcher's task function."""

    def __init__(self, launcher: Any, task: Task, loader: Any, master: DictConfig, overrides: Overrides, say: Callable) -> None:
        self.launcher, self.task, self.say = launcher, task, say
        self.sources = loader.get_search_path().get_path()
        self.composed = task.composed = composer.Composer(loader, master)
        self.settings, self.overrides = master.sweep, tuple(overrides)
        # Unresolved, because an override of a job's folder may refer to values that only a job has.
        words: Any = OmegaConf.to_container(master.hydra.overrides.hydra)
        self.options = [*given(self.sources), *(each for each in words if each.startswith(LAUNCHER))]
        self.recorder: Any = None
        self.reports = False
        # Additional tags of the parent run.
        self.tags: dict[str, str] = {}
        self.known: dict[str, Any] = {}
        self.claims: Any = None
        self.outcomes: list[Outcome] = []
        self.launched, self.began = 0, time.perf_counter()

    def varies(self, keys: Iterable[str]) -> None:
        """Tag each job's run with these keys, in which the jobs of the sweep differ."""
        self.task.marks[SWEPT] = " ".join(keys)

    def launch(self, batch: Sequence[Overrides]) -> list[Outcome]:
        """Run a batch of jobs and return their outcomes in order; all are composed before the first one starts.

        Raises Ended if a signal, or a failed job with `sweep.fail_fast`, ends the sweep.
        """
        self.prepare(batch)
        jobs = [(job.overrides, job.identity) for job in map(self.composed, batch)]
        self.open(batch)
        elsewhere = self.claimed({identity for _, identity in jobs})
        found = {i: self.reused(*job) for i, job in enumerate(jobs)}
        self.say(self.told([identity for _, identity in jobs], found, elsewhere))
        if self.settings.plan:
            self.planned([batch[i] for i, outcome in found.items() if outcome is None])
            return []
        if self.recorder is not None:
            manifest.forget(self.recorder.pending, {each.identity for each in found.values() if each is not None})
        try:
            while todo := [i for i, outcome in found.items() if outcome is None]:
                if now := [i for i in todo if jobs[i][1] not in elsewhere]:
                    self.run(batch, now, found)
                    continue
                self.say(f"waits for {len(todo)} jobs that another sweep is running; sweep.reuse=false runs them here too")
                self.claims.wait(elsewhere)
                elsewhere = self.claimed(elsewhere)
                found |= {i: self.reused(*jobs[i]) for i in todo}
        finally:
            outcomes = [outcome for outcome in found.values() if outcome is not None]
            self.outcomes += outcomes
        return outcomes

    def run(self, batch: Sequence[Overrides], todo: list[int], found: dict[int, Outcome | None]) -> None:
        """Launch jobs until each has an outcome, and put the outcomes into `found`."""
        waiting = [todo]
        while waiting:
            now = waiting.pop(0)
            came = dict(zip(now, self.attempt([batch[i] for i in now]), strict=True))
            found |= {i: each for i, each in came.items() if isinstance(each, Outcome)}
            waiting += again(came, getattr(self.launcher, "apart", False))

    def claimed(self, identities: Set[str]) -> Set[str]:
        """Claim jobs for this sweep, and return those that another sweep claims; reread the known runs if a claim has ended."""
        if self.claims is None or not self.settings.reuse:
            return set()
        # The config digest of a job with an invalid configuration is empty.
        elsewhere, new = self.claims.take(identities - {""})
        if new:
            self.known = self.recorder.known()
        return elsewhere

    def prepare(self, batch: Sequence[Overrides]) -> None:
        """Start the recorder of the sweep before its jobs are composed."""
        if self.recorder is None and batch:
            prepare(self.composed(batch[0]).cfg.tracking)

    def open(self, batch: Sequence[Overrides]) -> None:
        """Begin the parent run in the store of the first job, if the sweep has not begun yet."""
        if self.recorder is not None:
            return
        cfg = self.composed(batch[0]).cfg
        self.recorder = self.task.record_by(cfg.tracking)
        if self.recorder is None:
            return
        if self.settings.plan:
            self.known = self.recorder.known()
            return
        self.claims = Claims(Path(cfg.tracking.pending), f"{store.absolute(cfg.tracking.uri)} {cfg.tracking.experiment}")
        text = " ".join(shown(self.overrides))
        if self.options:
            self.task.marks["options"] = " ".join(shown(self.options))
        tags = {"overrides": text, "sweep": "parent", **self.task.marks, **self.tags, **parameters.provenance()}
        self.known = self.recorder.begin(f"sweep {text}"[:250], tags)
        # There is no parent run offline.
        if self.recorder.run_id is not None:
            self.task.marks["mlflow.parentRunId"] = self.recorder.run_id
            self.reports = cfg.report.get("sweep") is not None

    def planned(self, batch: Sequence[Overrides]) -> None:
        """Print the plan of these jobs."""
        with quiet.tensorflow(), startup.without_optional_imports():
            from runner.sweeps import plan
        fuses = getattr(self.launcher, "fuses", False)
        for line in plan.plan([self.composed(each).cfg for each in batch], fuses):
            self.say(line)
        if fuses and getattr(self.launcher, "shares", False):
            self.say("  shared out among workers, each of which makes programs of its own for its part")

    def reused(self, overrides: tuple[str, ...], identity: str) -> Outcome | None:
        """Return the outcome of a job that was finished before; None if the job has to run."""
        before = self.known.get(identity, {})
        if not self.settings.reuse or not before.get("ending"):
            return None
        return Outcome(overrides, identity, reused=True, **read(before))

    def told(self, ids: Sequence[str], found: Mapping[int, Outcome | None], elsewhere: Set[str]) -> str:
        """Return the message with the number of jobs, and how many run or do not run for each reason."""
        at_it = "being run by another sweep"
        why = Counter(
            "reused" if outcome else at_it if ids[i] in elsewhere else self.reason(ids[i]) for i, outcome in found.items()
        )
        return f"{len(ids)} jobs: " + ", ".join(f"{count} {reason}" for reason, count in why.items())

    def reason(self, identity: str) -> str:
        """Return the reason why a job runs."""
        if not self.settings.reuse:
            return "to run, for sweep.reuse=false"
        status = self.known.get(identity, {}).get("status")
        return {"FAILED": "failed before", "KILLED": "interrupted before", "RUNNING": "begun before"}.get(status, "new")

    def attempt(self, batch: list[Overrides]) -> list[Outcome | bool]:
        """Launch jobs once and return their outcomes; for a job that has to be launched again, return whether it had begun."""
        first, self.launched = self.launched, self.launched + len(batch)
        state = Singleton.get_state()
        try:
            returns = self.launcher.launch(batch, initial_job_idx=first)
        except Ended:
            self.outcomes += [each for each in self.written(first) if isinstance(each, Outcome)]
            raise
        except Exception as error:
            # If a worker dies, the launcher gives up, and the jobs of the other workers are lost too.
            Singleton.set_state(state)
            written = self.written(first)
            if not any(written):
                raise UserError(f"hydra.launcher: {first_line(error)}") from error
            found = self.recorded(batch, written)
            # Only this job was running, so it caused the death of its process.
            return [self.task.died(batch[0], error)] if found == [True] else found
        return [as_outcome(each, returned._return_value) for each, returned in zip(batch, returns, strict=True)]

    def written(self, first: int) -> list[Outcome | bool]:
        """Return the outcome in each job's file, from number `first` on; without an outcome, whether the job has begun."""
        return [self.task.read(number) for number in range(first, self.launched)]

    def recorded(self, batch: list[Overrides], written: list[Outcome | bool]) -> list[Outcome | bool]:
        """Return `written`, with the outcomes of begun jobs whose runs ended in the store although their processes died."""
        found = list(written)
        lost = {i: self.composed(job) for i, job in enumerate(batch) if found[i] is True}
        asked = {job.identity for job in lost.values()}
        runs = {} if self.recorder is None else self.recorder.settled(asked, self.known)
        for i, job in lost.items():
            if (run := runs.get(job.identity, {})).get("ending"):
                found[i] = Outcome(job.overrides, job.identity, log=self.task.logs, **read(run))
        return found

    def close(self, ended: BaseException | None) -> None:
        """Release the claims, end the parent run with the table of all jobs, and print the summary and the failed jobs."""
        if self.claims is not None:
            self.claims.release()
        if self.settings.plan:
            return
        failed = [each for each in self.outcomes if each.failed]
        if self.recorder is not None and self.recorder.run_id is not None:
            whole = ended is None and not any(each.interrupted for each in self.outcomes)
            status = "FAILED" if failed else "FINISHED" if whole else "KILLED"
            tags = {"jobs": str(len(self.outcomes)), "mlflow.note.content": self.summary()}
            self.recorder.end(status, tags, self.metrics(), table(self.outcomes))
            self.say(f"the sweep is run {self.recorder.run_id} in {self.recorder.uri}")
        if self.outcomes:
            self.say(self.summary())
        for reason, count in Counter(each.skipped for each in self.outcomes if each.skipped is not None).items():
            self.say(f"  {count} skipped: {reason}")
        for each in failed:
            self.say(f"  {' '.join(shown(each.overrides))}: {each.error}")
            self.say(f"    log:   {each.log}")
            self.say(f"    again: {command(each.overrides, self.sources)}")
        if ended is None and self.reports:
            self.report()

    def report(self) -> None:
        """Make the report if there are several runs to compare; an error in the report does not fail the sweep."""
        runs = sum(each.ending is not None and not each.interrupted for each in self.outcomes)
        if runs < 2:
            return
        try:
            if runs > MANY or str(self.recorder.uri).startswith("http"):
                self.say(f"{runs:,} runs are being reported; Ctrl-C leaves that to {self.reporting()}")
            for line in self.recorder.report(self.facts()):
                self.say(line)
        except KeyboardInterrupt:
            self.say(f"no report; it is made by {self.reporting()}")
            raise
        except Exception as error:
            self.say(f"the report cannot be made: {first_line(error)}; again: {self.reporting()}")

    def facts(self) -> dict[str, Any] | None:
        """Return the facts about the losses if this process has imported TensorFlow; else None, and the recorder imports it."""
        if "tensorflow" not in sys.modules:
            return None
        from runner.report.tables import facts

        return {key: fact.fields for key, fact in facts.of(self.recorder.losses()).items()}

    def reporting(self) -> str:
        """Return the command that makes the report of this sweep."""
        from runner.report.command import command

        return command(str(self.recorder.uri), self.recorder.run_id)

    def summary(self) -> str:
        """Return the message that counts the jobs' endings and names the best loss."""
        endings = Counter("failed" if each.failed else each.ending or "skipped" for each in self.outcomes)
        reused = sum(each.reused for each in self.outcomes)
        text = f"{len(self.outcomes)} jobs: " + ", ".join(f"{count} {ending}" for ending, count in endings.items())
        losses = {each.best_loss: each for each in reversed(self.outcomes) if each.best_loss is not None}
        text += f" ({reused} of them reused)" if reused else ""
        if not losses:
            return text
        best = min(losses)
        return f"{text}; the best loss is {best:.7g}, of {' '.join(shown(losses[best].overrides))}"

    def metrics(self) -> dict[str, float]:
        """Return the metrics of the parent run."""
        losses = [each.best_loss for each in self.outcomes if each.best_loss is not None]
        found = {"jobs": len(self.outcomes), "failed": sum(each.failed for each in self.outcomes)}
        found["skipped"] = sum(each.skipped is not None for each in self.outcomes)
        found |= {"reused": sum(each.reused for each in self.outcomes), "seconds": time.perf_counter() - self.began}
        return {
            f"system/{key}": float(value) for key, value in (found | ({"best_loss": min(losses)} if losses else {})).items()
        }


def again(came: Mapping[int, Outcome | bool], apart: bool) -> list[list[int]]:
    """Return the jobs to launch again after a launcher has lost a process, as batches that run one after another.

    One of the begun jobs killed the process. If the launcher's processes are not `apart`, other begun jobs died with it, so the
    begun jobs are split into halves until the job is found.
    """
    if apart:
        batches = [[i for i, each in came.items() if not isinstance(each, Outcome)]]
    else:
        begun = [i for i, each in came.items() if each is True]
        half = -(-len(begun) // 2)
        batches = [[i for i, each in came.items() if each is False], begun[:half], begun[half:]]
    return [each for each in batches if each]


def read(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the store's fields of a run as fields of an Outcome."""
    iterations = run.get("iterations")
    fields = {key: run.get(key) for key in ("run_id", "ending", "stopped_by", "last_loss", "best_loss")}
    return fields | {"iterations": None if iterations is None else int(iterations)}


def table(outcomes: Sequence[Outcome]) -> dict[str, list[Any]]:
    """Return a column for each field of the outcomes."""
    rows = [secrets.hidden(asdict(each)) | {"overrides": " ".join(shown(each.overrides))} for each in outcomes]
    # The metrics are left out, because each run has its own.
    return {key: [row[key] for row in rows] for key in (rows[0] if rows else ()) if key != "metrics"}


def command(overrides: Overrides, sources: Sequence[Any]) -> str:
    """Return the command that runs one job alone, with the config folder and the targets that the user named."""
    return shlex.join(["python", "-m", "runner", *given(sources), *shown(overrides)])


def given(sources: Sequence[Any]) -> list[str]:
    """Return the options of the user's command: the allowed targets and the config folder."""
    options = [f"{targets.OPTION}={each}" for each in targets.NAMED]
    return options + [
        f"--config-dir={each.path.removeprefix('file://')}" for each in sources if each.provider == "command-line"
    ]
