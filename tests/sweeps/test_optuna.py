"""Sweeps whose values Optuna chooses: the space that was typed, every sampler, studies that go on, and what goes wrong."""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import servers
import yaml
from commands import Command
from conftest import CONF, environment, own_loss, store
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.trial import TrialState

from runner.config import grammar
from runner.sweeps.optuna import space, trials
from runner.sweeps.task import Outcome

OPTUNA = ["-m", "hydra/sweeper=optuna"]
FUSED = [*OPTUNA, "hydra/launcher=fused", "max_iterations=1"]
RATE = "optimizer.learning_rate=tag(log,interval(1e-4,10))"
STORAGE = "sqlite:///outputs/studies/optuna.db"
KEPT = f"hydra.sweeper.storage={STORAGE}"

# A loss that goes wrong in the ways that its key names, the second and third of them the first time only.
WAYS = """
import os, pathlib, signal
import tensorflow as tf

calls = 0

def loss(x, *, way):
    global calls
    calls += 1
    if way == 1: raise ZeroDivisionError("division by zero")
    again = pathlib.Path(f"way{way}")
    # A run takes signals once it is in its loop.
    if (way == 3 or way == 2 and calls > 20) and not again.exists():
        again.touch()
        os.kill(os.getpid(), signal.SIGTERM if way == 2 else signal.SIGKILL)
    return tf.square(x - way)
"""


@pytest.fixture
def ways(tmp_path, monkeypatch):
    """Give the words of a study over the loss that goes wrong."""
    own_loss(tmp_path, "ways", WAYS)
    monkeypatch.syspath_prepend(tmp_path)
    yield [
        "-m",
        "--config-dir=conf",
        *OPTUNA[1:],
        "loss=ways",
        "guess=point",
        "guess.x=3",
        "max_iterations=40",
        "execution=eager",
        KEPT,
    ]
    sys.modules.pop("ways", None)


def study(storage: str = STORAGE) -> optuna.Study:
    """Return the one study that a storage holds."""
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage)


def results(folder: Path) -> dict:
    """Return what the latest sweep wrote down."""
    return yaml.safe_load(max(folder.glob("outputs/sweeps/*/*/optimization_results.yaml")).read_text())


def parse(*typed: str) -> list:
    grammar.extend()
    return OverridesParser.create().parse_overrides(list(typed))


def draw(typed: str, count: int) -> list[str]:
    """Return the overrides of so many random trials."""
    with trials.quiet():
        axis = space.read(parse(f"key={typed}"))[0]["key"]
    asked = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [axis.typed(asked.ask({"key": axis.distribution}).params["key"]) for _ in range(count)]


@pytest.mark.parametrize(
    "typed",
    [
        "range(0,4)",
        "range(10,0,-3)",
        "tag(log,range(1,5))",
        # Where steps are added up, 0.3 is 0.30000000000000004.
        "range(0.1,0.55,0.1)",
        "range(1,0.1,-0.3)",
        "sgd,adam,adam",
        "choice(1,true,1.0,'a b')",
        "1,null",
        "[1,2],[3,4],{a:1}",
        "logspace(-2,0,3)",
        "linspace(0,1,3)",
    ],
)
def test_values_that_can_be_counted_are_those_of_a_grid(typed):
    (override,) = parse(f"key={typed}")
    assert set(draw(typed, 200)) == {f"key={text}" for text in override.sweep_string_iterator()}


@pytest.mark.parametrize(
    ("typed", "kind", "low", "high"),
    [
        ("interval(-1,2)", float, -1, 2),
        ("interval(1,3)", float, 1, 3),
        ("tag(log,interval(1e-4,1))", float, 1e-4, 1),
        ("int(interval(1,3))", int, 1, 3),
        ("int(tag(log,interval(1,1000)))", int, 1, 1000),
    ],
)
def test_an_interval_is_filled_and_never_left(typed, kind, low, high):
    values = [override.value() for override in parse(*draw(typed, 1000))]
    assert {type(value) for value in values} == {kind}
    assert low <= min(values) and max(values) <= high
    # Whole numbers stand for what is rounded to them.
    half = 0.5 if kind is int else 0
    ends = [low - half, *values, high + half]
    places = [math.log(each) for each in ends] if "log" in typed else ends
    # The mean of 1000 even draws is within four of its standard errors, 0.29 / 1000^0.5 of the width.
    assert abs(sum(places[1:-1]) / 1000 - (places[0] + places[-1]) / 2) < 0.04 * (places[-1] - places[0])
    assert kind is int or len({repr(value) for value in values}) == 1000


def test_values_arrive_with_all_their_digits(cli, runs):
    assert cli(*FUSED, RATE, "hydra.sweeper.n_trials=5", KEPT).code == 0
    asked = {trial.params["optimizer.learning_rate"] for trial in study().trials}
    assert {float(run.data.params["optimizer.learning_rate"]) for run in runs()} == asked and len(asked) == 5


SPACE = ["optimizer.learning_rate=linspace(0.1,0.9,3)", "guess.x=0,1"]


SAMPLERS = [path.stem for path in sorted((CONF / "hydra/sweeper/sampler").glob("*.yaml"))]


@pytest.mark.parametrize(("sampler", "launcher"), [*((each, "fused") for each in SAMPLERS), ("tpe", "basic")])
def test_every_sampler_searches(cli, runs, tmp_path, sampler, launcher):
    numbers = [RATE, "guess.x=interval(-1,1)", "seed=range(0,3)"]
    words = ["guess=point", *(SPACE if sampler == "grid" else numbers)]
    ended = cli(*FUSED, f"hydra/launcher={launcher}", f"hydra/sweeper/sampler={sampler}", *words, "hydra.sweeper.n_trials=12",
                "hydra.sweeper.batch_size=4")  # fmt: skip
    assert ended.code == 0 and ended.err == ""
    found = results(tmp_path)
    losses = [run.data.metrics["system/best_loss"] for run in runs()]
    assert len(losses) == (6 if sampler == "grid" else 12)
    assert found["name"] == "optuna" and found["best_value"] == min(losses)
    line = " ".join(f"{key}={value!r}" for key, value in found["best_params"].items())
    assert f"{line}: best_loss {min(losses):.7g}\n" in ended.out and "best trial " in ended.out
    if sampler == "grid":
        # A step of SGD scales x - 4 by 1 - 2 · rate, wherever it begins.
        assert found["best_params"]["optimizer.learning_rate"] == 0.5 and found["best_value"] == 0


def test_tpe_finds_the_best_learning_rate(cli, tmp_path):
    """(x - 4)² from 0 by one step of SGD: x_1 = 8 · rate, which is 4 at a rate of 0.5."""
    ended = cli(*FUSED, RATE, "hydra.sweeper.n_trials=60")
    assert ended.code == 0
    # Of 60 even draws over the five decades the nearest is expected some 4 percent off; below 0.02 are 0.5 ± 0.018.
    found = results(tmp_path)
    assert abs(found["best_params"]["optimizer.learning_rate"] - 0.5) < 0.018 and found["best_value"] < 0.02


def test_a_front_of_two_objectives(cli, runs, tmp_path):
    words = ["hydra/sweeper/sampler=nsgaii", "hydra.sweeper.sampler.population_size=8", "hydra.sweeper.n_trials=24"]
    words += ["hydra.sweeper.objective=[best_loss,iterations]", "hydra.sweeper.direction=[minimize,minimize]"]
    words += ["optimizer.learning_rate=interval(0,1.2)", "guess=point", "guess.x=interval(3,4)", "max_iterations=20"]
    stop = ["stopping=[gradient_norm]", "stopping.gradient_norm.tolerance=0.01"]
    ended = cli(*OPTUNA, "hydra/launcher=fused", *words, *stop, "hydra.sweeper.batch_size=8")
    assert ended.code == 0 and ended.err == ""
    front = {tuple(each["values"]) for each in results(tmp_path)["solutions"]}
    values = {(run.data.metrics["system/best_loss"], run.data.metrics["system/iterations"]) for run in runs()}
    assert front == {one for one in values if not any(a <= one[0] and b <= one[1] for a, b in values - {one})}
    assert ended.out.count("of the front: trial ") >= len(front) > 0


def test_a_study_goes_on_where_it_ended(cli, runs, tmp_path):
    words = [*FUSED, RATE, KEPT, "hydra.sweeper.batch_size=3"]
    assert cli(*words, "hydra.sweeper.n_trials=5").code == 0
    before = [trial.params for trial in study().trials]
    again = cli(*words, "hydra.sweeper.n_trials=5")
    assert again.code == 0 and "goes on: 5 trials have a value, 0 were begun before, 0 failed before, 0 are new" in again.out
    more = cli(*words, "hydra.sweeper.n_trials=8")
    assert more.code == 0 and "3 jobs: 3 new" in more.out and "best trial" in more.out
    after = [trial.params for trial in study().trials]
    # The seed does not draw its first trials once more.
    assert after[:5] == before and len({repr(params) for params in after}) == 8 == len(runs())
    other = cli(*words, "hydra.sweeper.n_trials=2", "optimizer.momentum=0.5")
    assert "goes on" not in other.out and len(optuna.get_all_study_names(STORAGE)) == 2


def test_without_a_storage_the_same_command_reuses_its_runs(cli, runs):
    words = [*FUSED, RATE, "hydra.sweeper.n_trials=20"]
    assert cli(*words).code == 0
    again = cli(*words)
    assert again.out.count("10 jobs: 10 reused") == 2 and len(runs()) == 20


def test_a_study_in_postgresql(cli, tmp_path):
    with servers.postgresql(tmp_path / "server") as uri:
        words = [*FUSED, RATE, f"hydra.sweeper.storage={uri}", "hydra.sweeper.study_name=mine"]
        assert cli(*words, "hydra.sweeper.n_trials=3").code == 0
        assert (
            "3 trials have a value, 0 were begun before, 0 failed before, 2 are new"
            in cli(*words, "hydra.sweeper.n_trials=5").out
        )
        found = study(uri)
        assert found.study_name == "mine" and [trial.state for trial in found.trials] == [TrialState.COMPLETE] * 5


def test_the_parent_run_tells_the_study(cli, tmp_path):
    assert cli(*FUSED, RATE, "hydra.sweeper.n_trials=2", "hydra.sweeper.study_name=mine").code == 0
    client = store(tmp_path)
    (parent,) = client.search_runs([each.experiment_id for each in client.search_experiments()], "tags.sweep = 'parent'")
    assert parent.data.tags["study"] == "mine" and parent.data.tags["sampler"] == "TPESampler"


def test_a_trial_that_fails_is_told_as_such_and_run_again(cli, ways):
    words = [*ways, "hydra/sweeper/sampler=grid", "loss.way=0,1"]
    for count in (1, 2):
        ended = cli(*words)
        assert ended.code == 1 and ended.err == f"error: 1 of {3 - count} jobs failed, as told above\n"
        assert "ZeroDivisionError: division by zero" in ended.out and "best trial" in ended.out
        states = sorted((trial.params["loss.way"], trial.state.name) for trial in study().trials)
        assert states == [(0, "COMPLETE"), *[(1, "FAIL")] * count]
    assert "1 trials have a value, 0 were begun before, 1 failed before, 0 are new" in ended.out


def test_a_trial_that_was_interrupted_goes_on(cli, ways):
    words = [*ways, "hydra/sweeper/sampler=grid", "loss.way=0,2"]
    assert cli(*words).code == 143
    assert TrialState.RUNNING in {trial.state for trial in study().trials}
    again = cli(*words)
    assert again.code == 0 and "0 failed before, 0 are new" in again.out
    assert {trial.params["loss.way"]: trial.state for trial in study().trials} == dict.fromkeys((0, 2), TrialState.COMPLETE)
    assert len(study().trials) == 2


def test_a_study_whose_process_was_killed_goes_on(cli, ways, tmp_path):
    words = [*ways, "hydra/sweeper/sampler=grid", "loss.way=0,3", "hydra.sweeper.batch_size=1"]
    assert Command(tmp_path, *words).ended().code == -signal.SIGKILL
    (dead,) = study().get_trials(states=(TrialState.RUNNING,))
    again = cli(*words)
    assert again.code == 0 and "1 were begun before" in again.out
    assert [trial.state for trial in study().trials] == [TrialState.COMPLETE] * 2
    assert study().trials[dead.number].params == dead.params == {"loss.way": 3}


def test_a_study_has_one_process_at_a_time(cli):
    words = [*FUSED, RATE, KEPT, "hydra.sweeper.n_trials=1"]
    assert cli(*words).code == 0
    study().set_user_attr("process", [socket.gethostname(), os.getppid()])
    ended = cli(*words, "hydra.sweeper.n_trials=2")
    assert ended.code == 1 and f"is run by process {os.getppid()}; wait for it" in ended.err and ended.err.count("\n") == 1


def test_a_run_that_diverges_is_never_the_best():
    """It would be, for the loss it began with, and for how few iterations it took."""
    told = optuna.create_study(directions=["minimize", "minimize"])
    asked = trials.Trials(told, None, space.read(parse("a=interval(0,1)"))[0], (), ("best_loss", "iterations"))
    fine = Outcome((), ending="converged", best_loss=1.0, iterations=20)
    bad = Outcome((), ending="diverged", best_loss=0.5, iterations=2)
    assert asked.values(bad) == [math.inf, math.inf] and asked.values(fine) == [1.0, 20.0]
    for trial, outcome in zip(asked.ask(3), (bad, fine, Outcome((), error="none")), strict=True):
        asked.tell(trial.number, outcome)
    assert [trial.state.name for trial in told.trials] == ["COMPLETE", "COMPLETE", "FAIL"]
    assert [trial.values for trial in asked.best()] == [[1.0, 20.0]]


def test_diverging_rates_are_told_and_left(cli, runs, tmp_path):
    """SGD on (x - 4)² diverges at a rate above 1, until float32 has no such number."""
    words = ["optimizer.learning_rate=interval(0,100)", "max_iterations=300", "hydra.sweeper.n_trials=12", KEPT]
    assert cli(*FUSED, *words).code == 0
    endings = [run.data.tags["ending"] for run in runs()]
    assert "diverged" in endings and endings.count("diverged") == sum(math.isinf(trial.value) for trial in study().trials)


EXPERIMENT = """
# @package _global_
hydra:
  sweeper:
    n_trials: 3
    params:
      optimizer.learning_rate: interval(0.2,0.3)
      optimizer.momentum: 0,0.5
      seed: 3
"""


def test_a_space_in_a_file(cli, runs, tmp_path):
    (tmp_path / "conf/experiment").mkdir(parents=True)
    (tmp_path / "conf/experiment/mine.yaml").write_text(EXPERIMENT)
    ended = cli("-m", "--config-dir=conf", *FUSED[1:], "experiment=mine", "optimizer.momentum=0.25")
    assert ended.code == 0, ended.err
    assert len(runs()) == 3
    for run in runs():
        assert 0.2 <= float(run.data.params["optimizer.learning_rate"]) <= 0.3 and run.data.params["seed"] == "3"
        # What is typed holds.
        assert run.data.params["optimizer.momentum"] == "0.25"


def test_choices_of_a_group_by_a_pattern(cli, runs):
    assert cli(*OPTUNA, "hydra/sweeper/sampler=grid", "strategy=glob(*)", "max_iterations=1").code == 0
    assert sorted(run.data.tags["strategy"] for run in runs()) == sorted(path.stem for path in CONF.glob("strategy/*.yaml"))


def test_a_plan_leaves_nothing(cli, runs, tmp_path):
    ended = cli(*FUSED, RATE, KEPT, "hydra.sweeper.batch_size=4", "sweep.plan=true")
    assert ended.code == 0 and "4 jobs" in ended.out and "one round of 100 trials" in ended.out
    assert runs() == [] and not (tmp_path / "outputs/studies").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["hydra/sweeper/sampler=tpee", RATE], "sampler must be one of its files, got 'tpee'; did you mean 'tpe'?"),
        (["hydra.sweeper.n_trials=0", RATE], "hydra.sweeper.n_trials must be a whole number in 1 … 100000, got 0"),
        (["hydra.sweeper.batch_size=x", RATE], "hydra.sweeper.batch_size must be a whole number in 1 … 100000, got 'x'"),
        (["hydra.sweeper.objective=loss", RATE], "must be one of its words, got 'loss'; did you mean 'last_loss'?"),
        (["hydra.sweeper.direction=up", RATE], "known: maximize, minimize"),
        (["hydra.sweeper.objective=[best_loss,iterations]", RATE], "hydra.sweeper.direction must have a word for each of"),
        (["+hydra.sweeper.sampler.sed=1", RATE], "sampler.sed is no argument of TPESampler; did you mean 'seed'?"),
        (["hydra.sweeper.sampler._target_=optuna.samplers.No", RATE], "'optuna.samplers.No' is not allowed"),
        (["hydra.sweeper.sampler._target_=keras.Sequential", "~hydra.sweeper.sampler.seed",
          "~hydra.sweeper.sampler.n_startup_trials", RATE], "must name a sampler of Optuna's"),
        (["hydra.sweeper.sampler._target_=collections.UserDict", RATE], "'collections.UserDict' is not allowed"),
        (["hydra.sweeper.storage=nosql:///x", RATE], "hydra.sweeper.storage cannot be used"),
        (["hydra/sweeper/sampler=grid", RATE], "this sampler needs countable values"),
        (["hydra/sweeper/sampler=cmaes", "hydra.sweeper.objective=[best_loss,iterations]",
          "hydra.sweeper.direction=[minimize,minimize]", RATE], "CmaEsSampler: ValueError: "),
        (["max_iterations=5"], "nothing is searched; give a key several values"),
        (["optimizer.learning_rate=interval(1,0)"], "optimizer.learning_rate=interval(1,0): `low <= high` must hold"),
        (["optimizer.learning_rate=tag(log,interval(0,1))"], "`low > 0` must hold"),
        (["optimizer.learning_rate=tag(lgo,interval(1,2))"], "the tag 'lgo' has no meaning here; did you mean 'log'?"),
        (["seed=range(3,3)", "optimizer.momentum=tag(log,range(0.1,0.5,0.1))"], "this range is empty; optimizer.momentum="),
        (["optimizer.learning_rat=interval(0,1)"], "learning_rat is no key of the configuration"),
        ([RATE, "sweep.zip=[[seed,dtype]]"], "sweep.zip is for a grid"),
    ],
)  # fmt: skip
def test_what_makes_no_search_is_told_in_a_line(cli, words, told):
    ended = cli(*OPTUNA, *words)
    assert ended.code == 1 and told in ended.err and ended.err.count("\n") == 1


def test_without_optuna_the_extra_is_named(cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    ended = cli(*OPTUNA, RATE)
    assert ended.code == 1 and "pip install 'tf-runner[optuna]'" in ended.err and ended.err.count("\n") == 1


def test_nothing_else_imports_optuna():
    code = """
import sys
from runner.cli import entry
from runner.sweeps import sweeper
sys.argv = ["runner", "--help"]
try:
    entry.main()
finally:
    assert "hydra_plugins.runner_sweeps" in sys.modules
    print("optuna" in sys.modules, "cmaes" in sys.modules)
"""
    ended = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert ended.stdout.endswith("False False\n")
