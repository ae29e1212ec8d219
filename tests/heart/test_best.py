"""The best of a random loss is of its full loss: in a run, in a fused job, in a rule, and as an objective of Optuna."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import history, own_loss
from test_stopping import run, trace

from runner import loop, stopping

# Noise of a standard deviation of 5 on a loss that is below 1: each run has draws far below the minimum, 0.
NOISY = ["loss=sphere", "loss.dimension=2", "noise=gaussian", "noise.loss=5", "optimizer.learning_rate=0.02", "seed=3"]
NOISY += ["max_iterations=60", "tracking.full_loss_every=7", "dtype=float64"]


def test_the_best_row_is_the_lowest_of_what_is_measured():
    rows = trace([-9.0, 1.0, 2.0, 3.0])
    measured = {"full_loss": np.array([4.0, np.nan, 2.5, 3.0])}
    whole = loop.Trace(0, rows.x, rows.loss, rows.gradient, measured=measured)
    assert loop.lower(None, whole, "full_loss").start == 2 and loop.lower(None, whole).start == 0
    # A row of an earlier version, which was not measured, gives way.
    assert loop.lower(rows[:1], whole[2:], "full_loss").start == 2
    assert run(rows).best_loss == -9


def full(x: np.ndarray) -> float:
    """The sphere's formula."""
    return float(np.sum(x**2))


@pytest.mark.parametrize("launcher", ["alone", "basic", "fused"])
def test_a_noisy_run_has_the_best_of_its_full_loss(cli, runs, tmp_path, launcher):
    words = NOISY if launcher == "alone" else ["-m", f"hydra/launcher={launcher}", *NOISY[:-4], "seed=3,4", *NOISY[-3:]]
    ended = cli(*words)
    assert ended.code == 0, ended.err
    for each in runs():
        x = np.stack([list(history(tmp_path, each.info.run_id, f"x/{i}").values()) for i in range(2)], axis=1)
        loss = history(tmp_path, each.info.run_id, "loss")
        steps = [*range(0, 61, 7), 60]
        expected = {step: full(x[step]) for step in steps}
        best = min(expected, key=lambda step: expected[step])
        metrics = each.data.metrics
        assert min(loss.values()) < 0 < metrics["system/best_loss"] == pytest.approx(expected[best])
        assert metrics["system/best_step"] == best and metrics["system/last_loss"] == pytest.approx(expected[60])
        assert f"the best {expected[best]:.7g} at step {best}" in each.data.tags["mlflow.note.content"]
    if launcher == "alone":
        assert f"best: step {best}  " in ended.out and f"full loss = {expected[best]:.7g}" in ended.out


def test_a_run_that_is_not_recorded_has_a_best_too(cli):
    ended = cli(*NOISY[:-2], "dtype=float64", "tracking=none", "max_iterations=250")
    assert ended.code == 0 and "best: step " in ended.out and "full loss = " in ended.out
    (best,) = (line for line in ended.out.splitlines() if line.startswith("best: step "))
    assert int(best.split()[2]) in (0, 100, 200, 250)


RANDOM = """
import tensorflow as tf

def loss(x, *, way, seed):
    return tf.square(x - 4) + 9 * tf.random.stateless_normal([], seed, dtype=x.dtype)
"""


def test_a_random_loss_without_a_full_loss_has_no_best(cli, runs, tmp_path, monkeypatch):
    own_loss(tmp_path, "mine", RANDOM)
    monkeypatch.syspath_prepend(tmp_path)
    words = ["--config-dir=conf", "loss=mine", "+loss.dimension=0", "guess=point", "guess.x=0.0", "max_iterations=5"]
    ended = cli(*words)
    assert ended.code == 0 and "best: " not in ended.out, ended.err
    (each,) = runs()
    assert not any("best" in name for name in each.data.metrics) and "the best" not in each.data.tags["mlflow.note.content"]
    told = cli(*words, "stopping=target", "stopping.target.loss=1")
    assert told.code == 1 and told.err.count("\n") == 1
    assert "stopping.target compares the full_loss of a random loss, and this one measures none" in told.err
    study = [
        "-m",
        words[0],
        "hydra/sweeper=optuna",
        *words[1:],
        "optimizer.learning_rate=interval(0,1)",
        "hydra.sweeper.n_trials=2",
    ]
    told = cli(*study)
    assert told.code == 1 and "objective=best_loss is not recorded of this loss" in told.err


def test_a_target_of_a_random_loss_is_of_its_full_loss():
    rows = trace(np.full(40, -1.0), x=np.arange(40.0)[::-1].copy())
    keys = {"loss": 20.0, "tolerance": None, "minimum": None, "full_loss": float}
    assert stopping.target(rows, 0, **keys) == 19
    # Every so many-th step of the run, however its rows come.
    for start in range(40):
        later = rows[start:]
        due = [step for step in range(0, 40, 6) if 39 - step <= 20 and step >= start]
        assert stopping.target(later, 0, **keys, every=6) == (due[0] - start if due else None)


@pytest.mark.parametrize("execution", ["eager", "xla"])
def test_a_noisy_run_ends_where_its_full_loss_is_at_the_target(cli, runs, tmp_path, execution):
    words = ["stopping=target", "stopping.target.tolerance=0.3", "stopping.target.every=5", f"execution={execution}"]
    assert cli(*NOISY, *words).code == 0
    (each,) = runs()
    x = np.stack([list(history(tmp_path, each.info.run_id, f"x/{i}").values()) for i in range(2)], axis=1)
    expected = next(step for step in range(0, 61, 5) if full(x[step]) <= 0.3)
    assert (each.data.tags["stopped_by"], each.data.metrics["system/iterations"]) == ("target", expected)


def test_optuna_takes_every_measure_that_is_recorded(cli, runs):
    words = ["-m", "hydra/sweeper=optuna", "hydra/launcher=fused", "loss=logistic_regression", "loss.batch_size=16"]
    words += ["loss.data.held_out=0.3", "optimizer.learning_rate=tag(log,interval(1e-3,1))", "max_iterations=20"]
    words += ["hydra.sweeper.n_trials=4", "hydra.sweeper.direction=maximize"]
    ended = cli(*words, "hydra.sweeper.objective=held_out_accuracy")
    assert ended.code == 0, ended.err
    best = max(each.data.metrics["system/held_out_accuracy"] for each in runs())
    assert f"held_out_accuracy {best:.7g}\n" in ended.out
    # Jobs that are reused have theirs in the store.
    again = cli(*words, "hydra.sweeper.objective=full_loss", "hydra.sweeper.direction=minimize", "hydra.sweeper.n_trials=1")
    assert again.code == 0 and ": full_loss " in again.out
    told = cli(*words, "hydra.sweeper.objective=held_out_acuracy")
    assert told.code == 1 and "got 'held_out_acuracy'; did you mean 'held_out_accuracy'?" in told.err
