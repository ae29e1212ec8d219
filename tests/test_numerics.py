"""A number that is not finite goes nowhere, and the same run has the same bits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
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

from runner import build, config, experiment, optimizers
from runner.loop import Ending, Result, Rules
from runner.losses import Loss
from runner.optimizers import NoOptimizer
from runner.programs import Program
from runner.trace import join

STRATEGIES = strategies(own_steps=False) | strategies(own_steps=True)
EXECUTIONS = {path.stem: OmegaConf.load(path) for path in sorted((CONF / "execution").glob("*.yaml"))}


@pytest.fixture(scope="module")
def composed() -> Iterator[Callable[..., Any]]:
    """Give a function that composes a configuration from overrides."""
    config.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield lambda *words: compose("config", ["tracking=none", *words])


@pytest.mark.parametrize("execution", ["eager", "graph", "xla"])
def test_a_gradient_that_is_not_finite_leaves_x_where_it_is(composed, execution):
    # x - 4 doubles and changes its sign in each step: its square overflows first, beyond 2**64, and x is finite yet.
    cfg = composed("optimizer.learning_rate=1.5", "max_iterations=300", f"execution={execution}")
    ready, rows = experiment.built(cfg), []
    result = experiment.steps(ready, [rows.append])
    assert (result.ending, result.stopped_by) == (Ending.DIVERGED, "nonfinite_loss")
    assert np.isfinite(result.x) and result.x == result.last.x[0] == ready.program.x.numpy()
    assert np.isfinite(join(rows)[:-1].loss).all()


@pytest.mark.parametrize("execution", ["eager", "graph", "xla"])
def test_an_x_that_is_not_finite_gives_way_to_the_one_before(composed, execution):
    words = ("optimizer.learning_rate=3e38", "optimizer.momentum=0.5", "guess=point", "guess.x=100", "max_iterations=5")
    cfg = composed(*words, f"execution={execution}")
    ready, rows = experiment.built(cfg), []
    result = experiment.steps(ready, [rows.append])
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
    ready = experiment.Built(loss, x.numpy(), Rules({}, 0, most, None), Program(x, made, run), 0.0)
    result = experiment.steps(ready, [])
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

    config.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        ready, rows = experiment.built(compose("config", words)), []
    experiment.steps(ready, [rows.append])
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
