"""A number that is not finite goes nowhere, and the same run has the same bits."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from commands import WARM
from conftest import CONF, strategies
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from runner import experiment, losses, optimizers, stopping
from runner.config import build, schema
from runner.config.parts import parts
from runner.executions.cache import Program
from runner.loop import Ending, Result, Rules
from runner.losses import Loss, sums
from runner.optimizers import NoOptimizer
from runner.trace import Trace, join, norm

STRATEGIES = strategies(without_optimizer=False) | strategies(without_optimizer=True)
EXECUTIONS = {path.stem: OmegaConf.load(path) for path in sorted((CONF / "execution").glob("*.yaml"))}


@pytest.fixture(scope="module")
def composed() -> Callable[..., Any]:
    """Give a function that composes a configuration from overrides."""
    schema.register()

    def composing(*words: str) -> Any:
        # Hydra is left to commands, which this file's other tests run in this process, as soon as it has composed.
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("config", ["tracking=none", *words])

    return composing


@pytest.mark.parametrize("execution", ["eager", "graph", "xla"])
def test_a_gradient_that_is_not_finite_leaves_x_where_it_is(composed, execution):
    # x - 4 doubles and changes its sign in each step: its square overflows first, beyond 2**64, and x is finite yet.
    cfg = composed("optimizer.learning_rate=1.5", "max_iterations=300", f"execution={execution}")
    ready, rows = parts(cfg), []
    result = experiment.run(ready, [rows.append])
    assert (result.ending, result.stopped_by) == (Ending.DIVERGED, "nonfinite_loss")
    assert np.isfinite(result.x) and result.x == result.last.x[0] == ready.program.x.numpy()
    assert np.isfinite(join(rows)[:-1].loss).all()


@pytest.mark.parametrize("execution", ["eager", "graph", "xla"])
def test_an_x_that_is_not_finite_gives_way_to_the_one_before(composed, execution):
    words = ("optimizer.learning_rate=3e38", "optimizer.momentum=0.5", "guess=point", "guess.x=100", "max_iterations=5")
    cfg = composed(*words, f"execution={execution}")
    ready, rows = parts(cfg), []
    result = experiment.run(ready, [rows.append])
    assert result.ending is Ending.DIVERGED and result.iterations == 1 and not np.isfinite(result.last.x[0])
    assert result.x == ready.program.x.numpy() == 100
    assert int(ready.program.optimizer.iterations) == 1


def unseen(x: tf.Tensor) -> tf.Tensor:
    """Return x⁴, whose gradient below 1 is NaN by way of what is not chosen there."""
    return tf.where(x < 1, x, tf.sqrt(x - 1) ** 2 + 1) ** 4


def undefined(x: tf.Tensor) -> tf.Tensor:
    """Return x⁴, or NaN below 1."""
    return tf.where(x < 1, math.nan, x**4)


ADAM = {"learning_rate": 0.3, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7}
OPTIMIZERS = {
    "keras": lambda: keras.optimizers.Adam(**ADAM),
    "tf_keras": lambda: tf_keras.optimizers.Adam(**ADAM),
    "tf1": lambda: tf.compat.v1.train.AdamOptimizer(0.3),
    "none": NoOptimizer,
}
WAYS = [("tape", "keras"), ("minimize", "keras"), ("minimize", "tf_keras"), ("minimize", "tf1"), ("newton", "none")]
CASES = [*((unseen, *way) for way in WAYS), (undefined, "tape", "keras")]


def ended(
    function: Any, strategy: str, optimizer: str, execution: str, most: int = 100
) -> tuple[Result, dict[str, np.ndarray]]:
    """Run from x = 8, in a compiled loop past the first row that is not finite; return the result and all variables."""
    x, loss = tf.Variable(8.0, name="x"), Loss(function, ())
    made = optimizers.ready(OPTIMIZERS[optimizer](), x)
    step = build.strategy(STRATEGIES[strategy], loss, made, x)
    run = build.execution(OmegaConf.merge(EXECUTIONS[execution], {"chunk": 1 if execution == "eager" else 7}), step)
    run.last()
    ready = experiment.Parts(loss, x.numpy(), Rules({}, 0, most, None), Program(x, made, run), 0.0)
    result = experiment.run(ready, [])
    slots = made.variables() if optimizer == "tf1" else made.variables
    # TensorFlow 1 numbers the names of its own.
    names = range(len(slots)) if optimizer == "tf1" else [each.name for each in slots]
    named = (
        dict(zip(names, slots, strict=True)) | dict(enumerate(step.variables or ())) | {"iterations": made.iterations, "x": x}
    )
    return result, {str(name): tf.convert_to_tensor(each).numpy() for name, each in named.items()}


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize(("function", "strategy", "optimizer"), CASES)
def test_what_is_not_finite_is_not_applied(function, strategy, optimizer, execution):
    result, left = ended(function, strategy, optimizer, execution)
    by = {unseen: "nonfinite_gradient", undefined: "nonfinite_loss"}[function]
    k = result.iterations
    assert (result.ending, result.stopped_by, left["iterations"]) == (Ending.DIVERGED, by, k) and k > 5
    assert left["x"] == result.last.x[0] < 1
    # The same program takes just these steps, and none from there.
    _, wanted = ended(function, strategy, optimizer, execution, k)
    assert left.keys() == wanted.keys() and len(left) > 2
    for name, value in wanted.items():
        np.testing.assert_array_equal(left[name], value, err_msg=name)
        assert np.isfinite(value).all()


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_the_averages_of_adam_are_those_of_its_finite_gradients(execution):
    result, left = ended(unseen, "tape", "keras", execution)
    # Kingma and Ba (2015), arXiv:1412.6980, algorithm 1.
    x, m, v = 8.0, 0.0, 0.0
    for t in range(1, result.iterations + 1):
        g = 4 * x**3
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        x -= 0.3 * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.999**t)) + 1e-7)
    for name, value in {"x": x, "momentum": m, "velocity": v}.items():
        (found,) = [each for key, each in left.items() if key.endswith(name)]
        assert found == pytest.approx(value, rel=1e-4)


def write(file: Path, words: list[str]) -> None:
    """Run what is composed of these words, and write to a file the bytes of every x."""
    from tensorflow.python.framework import config as switches

    schema.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        ready, rows = parts(compose("config", words)), []
    experiment.run(ready, [rows.append])
    assert switches.is_op_determinism_enabled()
    file.write_bytes(join(rows).x.tobytes())


def test_a_deterministic_run_has_the_same_bytes_in_another_process(tmp_path):
    words = ["tracking=none", "deterministic=true", "loss=mlp", "loss.batch_size=32", "optimizer=adam", "max_iterations=20"]
    files = [tmp_path / "one", tmp_path / "other"]
    for process in [WARM.Process(target=write, args=(file, words)) for file in files]:
        process.start()
        process.join()
        assert process.exitcode == 0
    one, other = (file.read_bytes() for file in files)
    assert one == other and len(one) > 20


@pytest.mark.parametrize("execution", ["eager", "graph", "xla"])
def test_adam_in_double_precision_is_its_formula_in_double_precision(composed, execution):
    rates = ["optimizer.learning_rate=0.3", "optimizer.beta_1=0.9", "optimizer.beta_2=0.999", "optimizer.epsilon=1e-7"]
    words = ["loss=quadratic", "optimizer=adam", "dtype=float64", "max_iterations=100", f"execution={execution}"]
    cfg = composed(*words, *rates)
    ready, found = parts(cfg), []
    experiment.run(ready, [found.append])
    # Kingma and Ba (2015), arXiv:1412.6980, the last lines of section 2, as Keras has them.
    x, m, v, wanted = np.float64(0), 0.0, 0.0, [np.float64(0)]
    for t in range(1, 101):
        g = 2 * (x - 4)
        m, v = m + (g - m) * (1 - 0.9), v + (g * g - v) * (1 - 0.999)
        x -= m * (0.3 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)) / (np.sqrt(v) + 1e-7)
        wanted.append(x)
    # A rounding or two in each step, of which the first, where 1 - 0.999 cancels, magnifies that of 0.999 a thousand times.
    np.testing.assert_allclose(join(found).x, wanted, rtol=1e-13)


@pytest.mark.parametrize("execution", ["eager", "xla"])
@pytest.mark.parametrize("schedule", [False, True])
def test_tf_keras_in_double_precision_steps_by_a_rate_of_double_precision(composed, execution, schedule):
    words = ["loss=quadratic", "optimizer=custom", "optimizer._target_=tf_keras.optimizers.SGD", "dtype=float64"]
    rates, keys = [0.1] * 20, ["optimizer.learning_rate=0.1"]
    if schedule:
        rates = [0.1 * 0.5 * (1 + math.cos(math.pi * t / 20)) for t in range(20)]
        keys = ["optimizer/learning_rate=cosine_decay", "optimizer.learning_rate.initial_learning_rate=0.1"]
        keys += ["optimizer.learning_rate.decay_steps=20", "optimizer.learning_rate.alpha=0.0"]
        keys += ["optimizer.learning_rate._target_=tf_keras.optimizers.schedules.CosineDecay"]
    x, wanted = 0.0, [0.0]
    for rate in rates:
        wanted.append(x := x - rate * 2 * (x - 4))
    ready, found = parts(composed(*words, *keys, "max_iterations=20", f"execution={execution}")), []
    experiment.run(ready, [found.append])
    np.testing.assert_allclose(join(found).x, wanted, rtol=1e-14)


@pytest.mark.parametrize("execution", ["graph", "xla"])
def test_a_schedule_in_double_precision_is_its_formula_in_double_precision(composed, execution):
    words = ["loss=quadratic", "optimizer=sgd", "optimizer/learning_rate=cosine_decay", "dtype=float64", "max_iterations=20"]
    schedule = {"initial_learning_rate": 0.1, "decay_steps": 20, "alpha": 0.3}
    keys = [f"optimizer.learning_rate.{name}={value}" for name, value in schedule.items()]
    ready, found = parts(composed(*words, *keys, f"execution={execution}")), []
    experiment.run(ready, [found.append])
    x, wanted = 0.0, [0.0]
    for t in range(20):
        rate = 0.1 * (0.7 * 0.5 * (1 + math.cos(math.pi * t / 20)) + 0.3)
        wanted.append(x := x - rate * 2 * (x - 4))
    np.testing.assert_allclose(join(found).x, wanted, rtol=1e-14)


RULES = ["gradient_norm", "step_size", "plateau"]


@pytest.mark.parametrize("launcher", ["basic", "fused"])
def test_numpy_warns_of_nothing_where_jobs_diverge(cli, runs, launcher):
    words = ["-m", "loss=rosenbrock", f"stopping=[{','.join(RULES)}]", "optimizer.learning_rate=1e-4,0.3,7,1e30"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        ended = cli(*words, f"hydra/launcher={launcher}", "max_iterations=200", "optimizer.momentum=0.9")
    assert ended.code == 0 and ended.err == ""
    assert [run.data.tags["ending"] for run in runs()].count("diverged") == 3


def test_norms_overflow_only_where_they_are_too_large():
    # Pythagoras's 3, 4, 5, whose squares are beyond double precision, in each direction.
    rows = np.array([[3e200, 4e200], [3e-200, 4e-200], [3, 4], [0, 0], [np.inf, 1], [1.5e308, 1.5e308], [np.nan, 1]])
    wanted = [5e200, 5e-200, 5, 0, np.inf, np.inf, np.nan]
    np.testing.assert_allclose(norm(rows), wanted, rtol=1e-15)
    trace = Trace(0, rows, np.zeros(7), rows)
    np.testing.assert_allclose(trace.gradient_norm, wanted, rtol=1e-15)
    small = Trace(0, np.array([[1e200, 0], [1e200, 1e180]]), np.zeros(2), np.zeros((2, 2)))
    assert stopping.step_size(small, 0, tolerance=1e-15) == 1 and stopping.step_size(small, 0, tolerance=1e-25) is None
    for dtype, scale in ((tf.float32, 1e30), (tf.float64, 1e200)):
        for jit_compile in (False, True):
            of = tf.function(sums.norm, jit_compile=jit_compile, autograph=False)
            found = of(tf.constant([[3 * scale, 4 * scale], [3 / scale, 4 / scale], [0, 0], [np.inf, 1]], dtype))
            np.testing.assert_allclose(found, [5 * scale, 5 / scale, 0, np.inf], rtol=1e-6)
        x = tf.constant([3 * scale, 4 * scale], dtype)
        with tf.GradientTape() as t:
            t.watch(x)
            y = sums.norm(x)
        np.testing.assert_allclose(t.gradient(y, x), [0.6, 0.8], rtol=1e-6)


@pytest.mark.parametrize("execution", ["graph", "xla"])
def test_a_sum_over_ten_million_numbers_is_right_in_single_precision(execution):
    x = tf.fill([10**7], tf.constant(0.1))
    of = tf.function(lambda x: (losses.sphere(x), sums.mean(x)), jit_compile=execution == "xla", autograph=False)
    squares, mean = of(x)
    # 0.1 is a rounding of single precision off, and so is the result.
    assert float(squares) == pytest.approx(1e5, rel=2e-7) and float(mean) == pytest.approx(0.1, rel=2e-7)
