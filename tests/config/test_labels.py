"""What a run is called is what runs: its labels, its name among its siblings, its parameters, and where an error came from."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import store

from runner import records

OWN = """
import tensorflow as tf
from runner import guesses, losses, strategies


def f(x):
    return tf.reduce_sum(tf.square(x - 1), axis=-1)


def start(loss, dtype, seed):
    return guesses.point(loss, dtype, seed, x=[3.0, 2.0])


def minimize(loss, optimizer, x):
    return strategies.minimize(loss, optimizer, x)


def small(trace, start, *, tolerance):
    return None


def raises(x):
    raise ValueError("a mistake of mine")


def calls(x):
    return tf.matmul(x, x)


def by_hand(x):
    return tf.constant(float(x[0]))


def prints(x):
    print("called")
    return tf.reduce_sum(tf.square(x - 1), axis=-1)


def writes(x):
    tf.print("written")
    return tf.reduce_sum(tf.square(x - 1), axis=-1)
"""
POINT = ("guess=point", "guess.x=[3,2]")


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the module of a user's own parts, which each test imports anew."""
    import sys

    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


def test_what_is_named_by_its_target_is_called_so_everywhere(drawn, runs, mine):
    words = (
        "loss._target_=mine.f",
        "guess._target_=mine.start",
        "optimizer._target_=keras.optimizers.SGD",
        "strategy=minimize",
        "strategy._target_=mine.minimize",
        "stopping=[plateau]",
        "stopping.plateau._target_=mine.small",
        "~stopping.plateau.patience",
        "max_iterations=2",
    )
    ended = drawn(*words)
    assert ended.code == 0 and ended.err == "", ended.err
    (run,) = runs()
    tags = {key: run.data.tags[key] for key in ("loss", "guess", "optimizer", "strategy", "execution", "stopping")}
    assert tags == {
        "loss": "mine.f",
        "guess": "mine.start",
        # This is the file's own.
        "optimizer": "sgd",
        "strategy": "mine.minimize",
        "execution": "xla",
        "stopping": "mine.small",
    }
    assert run.info.run_name.startswith("mine.f sgd mine.minimize xla")
    assert "mine.f from the guess mine.start" in ended.out and "quadratic" not in ended.out
    (page,) = mine.glob("outputs/runs/*/*/report.html")
    text = page.read_text()
    assert "mine.f by sgd" in text and "quadratic by" not in text


def test_a_run_that_takes_its_own_steps_is_drawn_under_the_name_of_its_strategy(drawn, tmp_path):
    assert drawn("loss=rosenbrock", "strategy=newton", "max_iterations=3").code == 0
    (page,) = tmp_path.glob("outputs/runs/*/*/report.html")
    assert "rosenbrock by newton (xla, float32)" in page.read_text()


def test_a_file_of_ones_own_is_called_by_its_name(cli, runs, mine):
    (mine / "conf/loss").mkdir(parents=True)
    (mine / "conf/loss/bowl.yaml").write_text("_target_: mine.f\n")
    (mine / "conf/loss/deeper.yaml").write_text("defaults: [bowl, _self_]\n")
    for name in ("bowl", "deeper"):
        assert cli("--config-dir", "conf", f"loss={name}", *POINT, "max_iterations=1").code == 0
    assert cli("optimizer=custom", "optimizer._target_=tf_keras.optimizers.SGD", "max_iterations=1").code == 0
    found = [(run.data.tags["loss"], run.data.tags["optimizer"]) for run in runs()]
    assert found == [("bowl", "sgd"), ("deeper", "sgd"), ("quadratic", "tf_keras.optimizers.SGD")]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("optimizer.learning_rate=0.2", "optimizer/learning_rate=cosine_decay"), "optimizer/learning_rate=cosine_decay"),
        (("experiment=schedule_warm_up", "optimizer.learning_rate=0.2"), "optimizer/learning_rate="),
        (("loss=mlp", "loss/data=iris", "loss.data=null"), "loss/data=iris and loss.data=None"),
        (("stopping=[plateau]", "stopping.plateau=3"), "stopping=plateau and stopping.plateau=3"),
    ],
)
def test_a_choice_that_a_plain_value_replaces_is_refused(cli, runs, words, named):
    ended = cli(*words)
    assert ended.code == 1 and ended.err.count("\n") == 1 and named in ended.err and "contradict" in ended.err, ended.err
    assert runs() == []


def test_a_sweep_skips_the_cells_that_contradict_themselves(cli, runs):
    ended = cli("-m", "optimizer.learning_rate=0.2", "optimizer/learning_rate=cosine_decay,exponential_decay")
    assert ended.code == 0 and ended.out.count("skipped, optimizer/learning_rate=") == 2 and runs() == [], ended


@pytest.mark.parametrize("execution", ["eager", "xla"])
def test_a_mistake_in_a_users_loss_is_told_by_its_line(cli, mine, execution):
    for name, error in (("raises", "ValueError: a mistake of mine"), ("calls", "MatMul")):
        line = OWN.partition(f"def {name}(x):")[0].count("\n") + 2
        ended = cli(f"loss._target_=mine.{name}", *POINT, f"execution={execution}")
        assert ended.code == 1 and ended.err.count("\n") == 1
        assert error.lower() in ended.err.lower() and f"(mine.py, line {line}, in {name})" in ended.err, ended.err
        assert "XLA" not in ended.err and "execution=" not in ended.err


def test_what_cannot_be_traced_is_told_by_its_line_and_the_way_out(cli, mine):
    ended = cli("loss._target_=mine.by_hand", *POINT)
    assert ended.code == 1 and "set execution=eager" in ended.err and "mine.py, line" in ended.err and "in by_hand" in ended.err


@pytest.mark.parametrize("execution", ["eager", "graph", "xla"])
def test_a_picture_is_not_heard_of_in_the_users_loss(cli, drawn, mine, monkeypatch, execution):
    from runner.config import parameters

    words = ("loss._target_=mine.prints", *POINT, f"execution={execution}", "max_iterations=4")
    with_picture = drawn(*words)
    monkeypatch.setattr(parameters, "draws", lambda cfg, marks: False)
    without = cli(*words)
    assert with_picture.code == without.code == 0 and with_picture.err == without.err == ""
    # An eager run looks at its first point before it begins, and has a row for each step and the last point; another is traced
    # at its first run in this process.
    assert with_picture.out.count("called") == (without.out.count("called") if execution == "eager" else 3) <= 6
    if execution == "graph":
        assert drawn("loss._target_=mine.writes", *POINT, "execution=graph", "max_iterations=4").err.count("written") <= 8


def test_siblings_are_told_apart_by_what_differs_in_their_sweep(cli, runs):
    assert cli("optimizer.learning_rate=0.25", "seed=3", "max_iterations=1").code == 0
    assert [run.info.run_name for run in runs()] == ["quadratic sgd tape xla learning_rate=0.25 seed=3"]
    words = ("optimizer=sgd,adam", "optimizer.learning_rate=logspace(-4,-3,3)", "max_iterations=1", "hydra/launcher=fused")
    assert cli("-m", *words).code == 0
    names = {run.info.run_name for run in runs()[1:]}
    rates = ("0.0001", "0.000316228", "0.001")
    assert names == {f"quadratic {name} tape xla learning_rate={rate}" for name in ("sgd", "adam") for rate in rates}


def test_parameters_are_of_the_experiment_and_records_of_both_kinds_are_read(cli, runs, tmp_path, capfd):
    from runner import diff, verify

    assert cli("max_iterations=3").code == 0
    (run,) = runs()
    keys = {key.partition(".")[0] for key in run.data.params}
    assert keys.isdisjoint({"tracking", "report", "checkpoint", "resume", "sweep"})
    assert "optimizer.learning_rate" in run.data.params and "max_iterations" in run.data.params
    # As runs were recorded before.
    assert cli("max_iterations=3", "resume=false").code == 0
    older = runs()[1].info.run_id
    client = store(tmp_path)
    client.log_param(older, "resume", "False")
    client.log_param(older, "tracking.every", "1")
    for each in (run.info.run_id, older):
        assert verify.report([each]) == records.SAME
    assert diff.report([run.info.run_id, older]) == records.SAME
    assert "configuration, versions and ending are the same" in capfd.readouterr().out
    client.log_param(older, "sweep.plan", "True")
    with pytest.raises(Exception, match=r"sweep\.plan"):
        verify.report([older])
