"""Optuna sweeps: make a study from the sweeper's keys, and run its rounds of trials."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from runner.cli import job
from runner.config import grammar
from runner.errors import UserError, first_line, nearest
from runner.security import pickles, targets, trust
from runner.sweeps import sweeper
from runner.sweeps.optuna import space as spaces
from runner.sweeps.optuna.space import Axis
from runner.sweeps.optuna.trials import OBJECTIVES, WORST, Trials, quiet
from runner.sweeps.sweep import Sweep
from runner.sweeps.task import Outcome
from runner.system import processes, startup
from runner.system import quiet as quiet_imports

PATH = "hydra.sweeper"
# Metrics that every run records. The other metrics of a run depend on its loss.
RECORDED = (*OBJECTIVES, "best_step", "best_gradient_norm", "last_gradient_norm", "gradient_evaluations")


@dataclass(frozen=True)
class Settings:
    """The sweeper's keys; conf/hydra/sweeper/optuna.yaml has their meaning and their defaults."""

    sampler: dict[str, Any]
    n_trials: int
    batch_size: int
    objective: list[str]
    direction: list[str]
    storage: str | None
    study_name: str | None
    params: dict[str, str]

    @classmethod
    def of(cls, keys: Mapping[str, Any]) -> Settings:
        """Return the settings, with a single objective or direction as a list; raises UserError that names all invalid keys."""
        several = {key: [keys[key]] if isinstance(keys[key], str) else keys[key] for key in ("objective", "direction")}
        made = cls(**{**keys, **several, "params": keys["params"] or {}})
        if faults := list(made.faults()):
            raise UserError("; ".join(faults))
        return made

    def faults(self) -> Iterator[str]:
        """Yield an error message for each invalid key."""
        for key in ("n_trials", "batch_size"):
            value = getattr(self, key)
            if type(value) is not int or not 1 <= value <= grammar.JOBS:
                yield f"{PATH}.{key} must be a whole number in 1 … {grammar.JOBS}, got {value!r}; set it with {PATH}.{key}=10"
        for word in self.direction:
            if word not in WORST:
                yield f"{PATH}.direction must be one of its words, got {word!r}; {nearest(word, tuple(WORST))}"
        if len(self.objective) != len(self.direction):
            yield f"{PATH}.direction must have a word for each of {PATH}.objective={','.join(self.objective)}"


def search(make: Callable[[Sequence[str]], Sweep], arguments: Sequence[str], keys: Mapping[str, Any]) -> list[Outcome]:
    """Launch the missing trials of a study, round after round, and return the outcomes of the jobs.

    Raises UserError for an invalid search, and the errors of `sweeper.ending`.
    """
    settings = Settings.of(keys)
    made = make(arguments)
    if made.settings.zip:
        raise UserError("sweep.zip is for a grid; set hydra/sweeper=grid, or leave it out")
    with quiet():
        axes, fixed = spaces.read(sweeper.parsed(made, settings.params, arguments))
        sampler, limit = sampler_of(settings, axes)
        recorded(made.composed([*fixed, *firsts(axes)]), settings.objective)
        called = settings.study_name or name(made, axes, fixed, settings)
        # A plan stores nothing.
        kept = None if settings.storage is None or made.settings.plan else opened(settings, called, settings.storage)
        study = begun(settings, called, sampler, kept)
    made.tags = {"study": called, "sampler": type(sampler).__name__}
    made.varies(axes)
    trials = Trials(study, kept, axes, fixed, settings.objective)
    with sweeper.ending(made), owned(study if kept is None else kept):
        try:
            for each in trials.rounds(limit, settings.batch_size, made.say):
                trials.run(made, each)
                if made.settings.plan:
                    made.say(f"that is one round of {limit} trials; what comes after depends on it")
                    break
        finally:
            # The task's folder is SWEEP/outcomes/ID; the report belongs to SWEEP.
            trials.report(made.say, Path(made.task.folder).parents[1])
    return made.outcomes


def sampler_of(settings: Settings, axes: Mapping[str, Axis]) -> tuple[Any, int]:
    """Return the sampler, and the number of trials after which the study ends.

    A sampler with an argument `search_space`, such as a grid, gets the axes' values, and the number of their combinations
    limits the trials. Raises UserError for a sampler that cannot be made.
    """
    from optuna.samplers import BaseSampler

    pickles.guard()
    path = f"{PATH}.sampler"
    node = targets.plain(path, settings.sampler)
    given: dict[str, Any] = {}
    try:
        target = targets.target(f"{path}._target_", node["_target_"])
        asked = inspect.signature(target).parameters
        if unknown := [key for key in node if key not in asked and not key.startswith("_")]:
            raise UserError(f"{path}.{unknown[0]} is no argument of {target.__name__}; {nearest(unknown[0], asked)}")
        limit = settings.n_trials
        if "search_space" in asked and "search_space" not in node:
            if (count := size(axes)) > grammar.JOBS:
                raise UserError(f"{path} tries all combinations: {grammar.JOBS} or less, got {count}; give fewer values")
            given["search_space"] = {key: countable(axis) for key, axis in axes.items()}
            limit = min(limit, count)
        made = targets.made(path, {**node, "_partial_": True})(**given)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}: {first_line(error)}") from error
    if not isinstance(made, BaseSampler):
        raise UserError(f"{path}._target_ must name a sampler of Optuna's, got {node['_target_']!r}")
    return made, limit


def countable(axis: Axis) -> list[Any]:
    """Return all values of an axis; raises UserError for an interval of real numbers."""
    if axis.values is None:
        remedy = f"{axis.key}=linspace(0,1,11), or another hydra/sweeper/sampler"
        raise UserError(f"{axis.key}: this sampler needs countable values, got an interval; give {remedy}")
    return list(axis.values)


def size(axes: Mapping[str, Axis]) -> int:
    """Return the number of combinations of the axes' values; 0 if an axis is not countable."""
    count = 1
    for axis in axes.values():
        count *= len(axis.values or ())
    return count


def firsts(axes: Mapping[str, Axis]) -> list[str]:
    """Return the overrides that give each axis its first value."""
    return [axis.typed(axis.distribution.low if axis.values is None else axis.values[0]) for axis in axes.values()]


def recorded(first: Any, objective: Sequence[str]) -> None:
    """Raise UserError for an objective that no run with this job's loss records; the loss is built only if needed."""
    if set(objective) <= set(OBJECTIVES):
        return
    job.checked(first.cfg, first.hydra.hydra)
    with quiet_imports.tensorflow(), startup.without_optional_imports():
        from runner.config import build
    loss = build.loss(first.cfg)
    known = [*RECORDED, *loss.measures]
    known += [] if loss.minimum is None else ["loss_above_minimum"]
    known += [] if loss.minimisers is None else ["distance_to_minimiser"]
    for word in objective:
        if word not in known and not word.startswith("seconds_") and not word.endswith("_evaluations"):
            raise UserError(f"{PATH}.objective must be one of its words, got {word!r}; {nearest(word, known)}")


def name(made: Sweep, axes: Mapping[str, Axis], fixed: Sequence[str], settings: Settings) -> str:
    """Return a study's default name: commands with equal space, fixed values, objectives, directions and sampler share it."""
    space = sorted((key, repr(axis.distribution)) for key, axis in axes.items())
    parts = [made.composed([*fixed, *firsts(axes)]).identity, space, settings.objective, settings.direction, settings.sampler]
    kind = str(settings.sampler["_target_"]).rpartition(".")[2]
    return f"{kind}-{hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]}"


def opened(settings: Settings, name: str, storage: str) -> Any:
    """Return the study of this name in a storage, and create it if it is missing.

    Raises UserError if the storage cannot be used, or if the study has other directions.
    """
    import optuna
    from sqlalchemy.engine import make_url

    trust.store(f"{PATH}.storage", storage)
    try:
        if (url := make_url(storage)).drivername.startswith("sqlite") and url.database:
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        # This study only stores the trials of the study in memory, so its sampler is not used.
        sampler, direction = optuna.samplers.RandomSampler(), settings.direction
        keys: dict[str, Any] = {"study_name": name, "directions": direction, "load_if_exists": True}
        study = optuna.create_study(storage=storage, sampler=sampler, **keys)
    except Exception as error:
        cause = error.__cause__ if isinstance(error, ImportError) and error.__cause__ else error
        raise UserError(f"{PATH}.storage cannot be used: {first_line(cause)}") from error
    there = [each.name.lower() for each in study.directions]
    if there != settings.direction:
        raise UserError(f"the study {name} has the direction {','.join(there)}; give this one another {PATH}.study_name")
    return study


def begun(settings: Settings, name: str, sampler: Any, kept: Any) -> Any:
    """Return a study in memory with the trials of the stored study `kept`, under the same numbers."""
    import optuna

    study = optuna.create_study(study_name=name, directions=list[Any](settings.direction), sampler=sampler)
    before = [] if kept is None else kept.get_trials()
    for each in before:
        if each.state == optuna.trial.TrialState.WAITING:
            # Somebody else enqueued this trial, so this process does not run it.
            each.state = optuna.trial.TrialState.FAIL
            each.datetime_start = each.datetime_complete = datetime.now()
        study.add_trial(each)
    if before:
        # The same seed would draw the stored trials again.
        sampler.reseed_rng()
    return study


@contextmanager
def owned(study: Any) -> Iterator[None]:
    """Mark a study as run by this process in this block; raises UserError if another process of this host runs it."""
    own = processes.name()
    other = dict(zip(own, study.user_attrs.get("process") or (), strict=False))
    if other and other["host"] == own["host"] and other["pid"] != own["pid"] and processes.there(other):
        which = f"process {other['pid']}"
        raise UserError(f"the study {study.study_name} is run by {which}; wait for it, or give another {PATH}.study_name")
    study.set_user_attr("process", [*own.values()])
    try:
        yield
    finally:
        study.set_user_attr("process", None)
