"""The experiments do what their comments say: their rows are those of the formulas, computed here with NumPy."""

from __future__ import annotations

import itertools
import re

import keras
import numpy as np
import pytest
from conftest import CONF
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from test_fused import plugins  # noqa: F401 (a fixture)

from runner.config import grammar, schema
from runner.config.parts import parts
from runner.trace import Trace, join


@pytest.fixture(autouse=True)
def dtype():
    """Leave Keras's default dtype as it was."""
    before = keras.config.floatx()
    yield
    keras.config.set_floatx(before)


def rows(name: str, *words: str) -> Trace:
    """Return all rows of an experiment in double precision."""
    schema.register()
    with initialize_config_dir(str(CONF), version_base=None):
        cfg = compose("config", overrides=[f"experiment={name}", "dtype=float64", *words])
    execution = parts(cfg).program.execution
    return join([execution.advance(cfg.max_iterations), execution.last()])


def step_lengths(trace: Trace) -> np.ndarray:
    return np.linalg.norm(np.diff(trace.x, axis=0), axis=1)


def cosine(part: np.ndarray) -> np.ndarray:
    """Return half a cosine from 1 at 0 to 0 at 1."""
    return (1 + np.cos(np.pi * part)) / 2


def test_the_rate_warms_up_and_falls() -> None:
    # Of SGD, the rate is the step's length over the gradient's, which stays large at so small a rate.
    trace = rows("schedule_warm_up", "optimizer=sgd", "loss=sphere", "optimizer.learning_rate.warmup_target=0.001")
    rate = step_lengths(trace) / trace.gradient_norm[:-1]
    k = np.arange(2000)
    expected = 0.001 * np.where(k < 200, k / 200, cosine((k - 200) / 1800))
    # Keras computes a schedule in float32.
    np.testing.assert_allclose(rate, expected, rtol=1e-5, atol=0.001 * 1e-6)


def test_the_rate_restarts() -> None:
    trace = rows("schedule_restarts", "optimizer.momentum=0.0", "loss=sphere")
    k = np.arange(1500)
    start = np.select([k < 100, k < 300, k < 700], [0, 100, 300], 700)
    length = np.select([k < 100, k < 300, k < 700], [100, 200, 400], 800)
    expected = 0.001 * cosine((k - start) / length)
    np.testing.assert_allclose(step_lengths(trace) / trace.gradient_norm[:-1], expected, rtol=1e-5, atol=0.001 * 1e-6)


def test_eight_gradients_move_x_by_their_mean() -> None:
    trace = rows("gradient_accumulation")
    assert len(trace) == 401
    x, gradient = trace.x[:400].reshape(50, 8, 2), trace.gradient[:400].reshape(50, 8, 2)
    np.testing.assert_array_equal(x, np.repeat(x[:, :1], 8, axis=1))
    # Each with its own noise.
    assert len(np.unique(gradient)) == gradient.size
    moved = np.diff(np.concatenate([x[:, 0], trace.x[400:]]), axis=0)
    np.testing.assert_allclose(moved, -0.005 * gradient.mean(axis=1), rtol=1e-9, atol=1e-12)


def test_a_run_that_accumulates_takes_max_iterations_steps(cli, runs) -> None:
    assert cli("experiment=gradient_accumulation", "max_iterations=20", "execution=eager").code == 0
    (run,) = runs()
    assert run.data.metrics["system/iterations"] == 20 and run.data.metrics["system/gradient_evaluations"] == 21


@pytest.mark.parametrize("key", ["clipnorm", "global_clipnorm"])
def test_a_gradient_is_shortened_to_its_norm(key: str) -> None:
    trace = rows("clip_norm", "optimizer.clipnorm=null", f"optimizer.{key}=10.0")
    norms = trace.gradient_norm[:-1, None]
    assert (norms > 10).sum() > 10 and (norms < 10).sum() > 10
    clipped = trace.gradient[:-1] * np.minimum(1, 10 / norms)
    np.testing.assert_allclose(np.diff(trace.x, axis=0), -0.005 * clipped, rtol=1e-9, atol=1e-12)


def test_each_number_of_a_gradient_is_cut() -> None:
    trace = rows("clip_value")
    assert (np.abs(trace.gradient) > 10).sum() > 10
    np.testing.assert_allclose(np.diff(trace.x, axis=0), -0.005 * np.clip(trace.gradient[:-1], -10, 10), rtol=1e-9, atol=1e-12)


# Enough of each study to see that its parts go together.
SHORTENED = {
    "study_optimizers": (
        "loss=himmelblau,rastrigin",
        "optimizer=adam,sgd",
        "optimizer.learning_rate=0.01,0.1",
        "seed=range(2)",
    ),
    "study_digits": ("loss=mlp", "optimizer=sgd", "optimizer.learning_rate=0.01,0.1", "seed=3"),
    "study_himmelblau": ("optimizer=adam,lion", "guess.x.0=-5,5", "guess.x.1=-5,5"),
}


def test_every_study_is_tried() -> None:
    assert SHORTENED.keys() == {path.stem for path in CONF.glob("experiment/study_*.yaml")}


@pytest.mark.parametrize("study", SHORTENED)
def test_a_study_is_one_sweep(cli, runs, study: str) -> None:
    words = SHORTENED[study]
    ended = cli("-m", f"experiment={study}", *words, "max_iterations=3")
    assert ended.code == 0 and ended.err == "", ended.err
    found = runs()
    assert len(found) == {"study_optimizers": 16, "study_digits": 2, "study_himmelblau": 8}[study]
    assert {run.info.status for run in found} == {"FINISHED"}
    # In the file itself, and fused.
    assert "as one program" in ended.out
    if study == "study_himmelblau":
        assert {(run.data.metrics["x/0"], run.data.metrics["x/1"]) for run in found} == set(
            itertools.product((-5, 5), repeat=2)
        )
    if study == "study_digits":
        assert {run.data.params["loss.data._target_"] for run in found} == {"runner.losses.data.digits"}


@pytest.mark.parametrize("study", SHORTENED)
def test_a_study_has_as_many_runs_as_its_comment_says(study: str) -> None:
    file = CONF / f"experiment/{study}.yaml"
    grammar.extend()
    params = OmegaConf.load(file).hydra.sweeper.params
    parsed = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    told = int(re.search(r"([\d,]+)\s+(?:# )?runs", file.read_text())[1].replace(",", ""))
    assert len(grammar.expand(parsed, [])) == told


def loss_at(x: np.ndarray) -> np.ndarray:
    """Return the ellipsoid of condition number 100."""
    return x[:, 0] ** 2 + 100 * x[:, 1] ** 2


def test_the_moving_average_is_recorded() -> None:
    trace = rows("average_ema")
    # Keras begins the average with the x after the first step.
    expected = [trace.x[0], trace.x[1]]
    for x in trace.x[2:]:
        expected.append(0.98 * expected[-1] + 0.02 * x)
    np.testing.assert_allclose(trace.named["average"], expected, rtol=1e-9)
    np.testing.assert_allclose(trace.named["average_loss"], loss_at(trace.named["average"]), rtol=1e-9)
    # Which is what it is for: in the noise about the minimum, the average is much nearer.
    assert trace.named["average_loss"][-200:].mean() < trace.loss[-200:].mean() / 3


def test_schedule_free_s_own_average_is_recorded() -> None:
    trace = rows("average_schedule_free")
    y, mean, beta = trace.x, trace.named["average"], 0.9
    np.testing.assert_allclose(mean[:2], [y[0], y[1]], rtol=1e-7)
    # y = (1 - β) z + β mean. The mean of all z is a' = (1 - 1/k) a + z' / k, but on TensorFlow Keras 3.15 takes z' for z where
    # it gets a back from y. Once it no longer does, this fails, and the comments on it can go.
    z = (y - beta * mean) / (1 - beta)
    k = np.arange(1, len(y))[:, None]
    back = (y[:-1] - (1 - beta) * z[1:]) / beta
    # Its β in float32 is 2e-8 off, which 1 / (1 - β) enlarges, as it does the roundings.
    np.testing.assert_allclose(mean[1:], (1 - 1 / k) * back + z[1:] / k, rtol=0, atol=1e-5)
    assert np.abs(mean[1:] - np.cumsum(z[1:], axis=0) / k).max() > 0.1
    np.testing.assert_allclose(trace.named["average_loss"], loss_at(mean), rtol=1e-9)


def test_an_average_takes_an_optimizer_that_keeps_one(cli, runs) -> None:
    ended = cli("strategy.average=true")
    assert ended.code == 1 and ended.err.count("\n") == 1 and "optimizer.use_ema=true" in ended.err and runs() == []
