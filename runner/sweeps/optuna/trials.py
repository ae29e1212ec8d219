"""The trials of a study: ask for them in rounds, run them as jobs of a sweep, and report the results to the study."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from runner.cli.job import SIGNALS
from runner.config import dump
from runner.errors import UserError, first_line, nearest
from runner.security import secrets
from runner.sweeps.optuna.space import Axis
from runner.sweeps.sweep import Sweep
from runner.sweeps.task import Outcome

# Objectives that are fields of every job's outcome. The other objectives are metrics of its run.
OBJECTIVES = ("best_loss", "last_loss", "iterations")
# The value of a diverged run, by direction. Optuna accepts infinities, and its samplers rank them last. A trial reported as
# failed would be ignored: TPE then drew 30 diverging trials of 60 instead of 18 (medians over 8 seeds).
WORST = {"minimize": math.inf, "maximize": -math.inf}


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress Optuna's warnings in this block, and its log below errors from now on; raises UserError without the extra."""
    try:
        import optuna
    except ImportError as error:
        raise UserError(first_line(error)) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Trials:
    """The trials of a study; the job of a trial has the fixed overrides and a value on each axis.

    `study` is in memory, and `kept` is its copy in a storage, or None. Each time a new trial is asked for, Optuna reads all
    unfinished trials of a database: a round of 256 trials took 12 s; with the study in memory it takes 2 s.
    """

    def __init__(
        self, study: Any, kept: Any, axes: Mapping[str, Axis], fixed: tuple[str, ...], objective: Sequence[str]
    ) -> None:
        self.study, self.kept, self.axes, self.fixed, self.objective = study, kept, axes, fixed, objective
        self.space = {key: axis.distribution for key, axis in axes.items()}
        self.outcomes: dict[tuple[str, ...], Outcome] = {}

    def rounds(self, limit: int, size: int, say: Callable[[str], None]) -> Iterator[list[Any]]:
        """Yield batches of at most `size` trials to run: first those begun before, then repeated failed ones and new ones.

        The number of repeated and new trials is `limit` minus the trials that have a value or are begun.
        """
        begun, failed, done = self.before()
        missing = max(limit - done - len(begun), 0)
        if begun or failed or done:
            note = f"the study {self.study.study_name} goes on: {done} trials have a value, {len(begun)} were begun before"
            say(f"{note}, {min(len(failed), missing)} failed before, {max(missing - len(failed), 0)} are new")
        for each in failed[:missing]:
            self.enqueue(each)
        for i in range(0, len(begun), size):
            yield begun[i : i + size]
        for i in range(0, missing, size):
            yield self.ask(min(size, missing - i))

    def before(self) -> tuple[list[Any], list[Any], int]:
        """Return the begun trials without a result, the trials that only ever failed, and the number of trials with a value."""
        from optuna.trial import TrialState

        found: dict[TrialState, list[Any]] = {state: [] for state in TrialState}
        for each in self.study.get_trials(deepcopy=False):
            # The trial was begun in another search space, or it does not have all its values yet.
            astray = each.state == TrialState.RUNNING and each.distributions != self.space
            if astray:
                self.settle(each.number, TrialState.FAIL)
            found[TrialState.FAIL if astray else each.state].append(each)
        begun, done = found[TrialState.RUNNING], found[TrialState.COMPLETE]
        others = {mark(each) for each in (*begun, *done)}
        failed = {mark(each): each for each in found[TrialState.FAIL] if each.distributions == self.space}
        return begun, [each for key, each in failed.items() if key not in others], len(done)

    def enqueue(self, trial: Any) -> None:
        """Enqueue a trial with the same values, to be returned by the next `ask`."""
        from optuna.trial import TrialState, create_trial

        keys = {"params": trial.params, "distributions": trial.distributions, "system_attrs": trial.system_attrs}
        self.study.add_trial(create_trial(state=TrialState.WAITING, **keys))

    def ask(self, count: int) -> list[Any]:
        """Return `count` new trials; raises UserError if the sampler does not support this search."""
        try:
            with quiet():
                numbers = [self.study.ask(self.space).number for _ in range(count)]
        except (ValueError, ImportError) as error:
            raise UserError(f"{type(self.study.sampler).__name__}: {first_line(error)}") from error
        known = self.study.get_trials(deepcopy=False)
        asked = [known[number] for number in numbers]
        if self.kept is not None:
            self.kept.add_trials(asked)
        return asked

    def run(self, sweep: Sweep, trials: Sequence[Any]) -> None:
        """Launch the trials' jobs and report the results to the study; a job that this sweep has run is not run again."""
        jobs = {each.number: self.overrides(each.params) for each in trials}
        new = [list(each) for each in dict.fromkeys(jobs.values()) if each not in self.outcomes]
        known = len(sweep.outcomes)
        try:
            if new:
                sweep.launch(new)
        finally:
            self.outcomes |= {each.overrides: each for each in self.complete(sweep, sweep.outcomes[known:])}
            for number, job in jobs.items():
                # An interrupted trial stays begun, and is resumed with the study.
                if job in self.outcomes and self.outcomes[job].stopped_by not in SIGNALS:
                    self.tell(number, self.outcomes[job])

    def complete(self, sweep: Sweep, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Return the outcomes with their objectives; the missing objectives of reused jobs are read from the store."""
        lacking = [
            str(each.run_id)
            for each in outcomes
            if each.run_id and not each.metrics and not set(self.objective) <= asdict(each).keys()
        ]
        recorded = sweep.recorder.metrics(lacking) if lacking else {}
        return [replace(each, metrics=recorded.get(str(each.run_id), each.metrics)) for each in outcomes]

    def overrides(self, params: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the overrides of a trial's job."""
        return *self.fixed, *(axis.typed(params[key]) for key, axis in self.axes.items())

    def tell(self, number: int, outcome: Outcome) -> None:
        """Report the outcome of a trial's job to the study."""
        from optuna.trial import TrialState

        if outcome.failed:
            self.settle(number, TrialState.FAIL)
        else:
            self.settle(number, TrialState.COMPLETE, self.values(outcome))

    def settle(self, number: int, state: Any, values: list[float] | None = None) -> None:
        """End a trial in the study in memory and in the stored study."""
        try:
            with quiet():
                self.study.tell(number, values, state)
        except RuntimeError as error:
            # An exhausted grid calls Study.stop, which Optuna refuses outside its own loop. By then the trial has its result.
            if "Study.stop" not in str(error):
                raise
        if self.kept is not None:
            self.kept.tell(number, values, state)

    def values(self, outcome: Outcome) -> list[float]:
        """Return an outcome's objectives; a diverged run gets the worst value for each, or its few iterations would look good.

        An objective that is not finite makes all values the worst too. Raises UserError if a run that has not diverged lacks an
        objective.
        """
        known = {name: getattr(outcome, name) for name in OBJECTIVES} | outcome.metrics
        given = [known.get(name) for name in self.objective]
        if outcome.ending != "diverged" and None in given:
            name = self.objective[given.index(None)]
            recorded = [key for key, value in known.items() if value is not None]
            raise UserError(f"hydra.sweeper.objective={name} is not recorded of this loss; {nearest(name, recorded)}")
        fine = outcome.ending != "diverged" and all(value is not None and math.isfinite(value) for value in given)
        return (
            [float(value) for value in given if value is not None]
            if fine
            else [WORST[each.name.lower()] for each in self.study.directions]
        )

    def best(self) -> list[Any]:
        """Return the best trial, or with several objectives the Pareto front; without diverged trials."""
        from optuna.trial import TrialState

        if not self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            return []
        found = [self.study.best_trial] if len(self.objective) == 1 else self.study.best_trials
        return [each for each in found if all(map(math.isfinite, each.values))]

    def report(self, say: Callable[[str], None], folder: Path) -> None:
        """Print the best trials, and write them to `optimization_results.yaml` in the format of Hydra's Optuna plugin."""
        best = self.best()
        if not best:
            return
        word = "best trial" if len(self.objective) == 1 else "of the front: trial"
        for each in best:
            came_to = ", ".join(f"{name} {value:.7g}" for name, value in zip(self.objective, each.values, strict=True))
            say(f"{word} {each.number}: {' '.join(self.overrides(each.params)[len(self.fixed) :])}: {came_to}")
        found = [{key: self.axes[key].value(value) for key, value in each.params.items()} for each in best]
        if len(self.objective) == 1:
            result = {"best_params": found[0], "best_value": best[0].value}
        else:
            result = {"solutions": [{"params": p, "values": each.values} for p, each in zip(found, best, strict=True)]}
        (folder / "optimization_results.yaml").write_text(
            dump.text(secrets.hidden({"name": "optuna", **result})), encoding="utf-8"
        )


def mark(trial: Any) -> str:
    """Return a text that is equal for trials with equal values."""
    return json.dumps(trial.params, sort_keys=True)
