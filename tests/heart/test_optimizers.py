"""Every optimizer of conf/ against a plain Keras loop, its signature, its schedules, and its own minimize where it has one."""

from __future__ import annotations

import inspect
from functools import cache
from math import cos, pi
from pkgutil import resolve_name
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import CONF, strategies
from omegaconf import OmegaConf

from runner import losses
from runner.config import build
from runner.errors import UserError
from runner.losses import Loss
from runner.trace import join

NODES = {path.stem: OmegaConf.load(path) for path in sorted((CONF / "optimizer").glob("*.yaml"))}
KERAS = [name for name, node in NODES.items() if str(OmegaConf.to_container(node)["_target_"]).startswith("keras.")]
SCHEDULES = {path.stem: path for path in sorted((CONF / "optimizer/learning_rate").glob("*.yaml"))}
STRATEGIES = strategies(without_optimizer=False)
EXECUTIONS = {path.stem: OmegaConf.load(path) for path in sorted((CONF / "execution").glob("*.yaml"))}
# Three losses of three shapes: a parabola, a curved valley, a condition number of a hundred.
LOSSES = {
    "quadratic": Loss.of(losses.quadratic),
    "rosenbrock": Loss.of(losses.rosenbrock, 2),
    "ellipsoid": Loss.of(lambda x: losses.ellipsoid(x, condition_number=100.0), 6),
}
STARTS = {"quadratic": 0.0, "rosenbrock": [-1.2, 1.0], "ellipsoid": [1.0, -2.0, 3.0, 0.5, -1.5, 2.0]}
N = 200


@pytest.fixture(autouse=True)
def float64():
    """Compare in double precision, where an optimizer's own arithmetic is not drowned in rounding."""
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    yield
    keras.config.set_floatx(before)


def rows(node: Any, loss: str = "quadratic", strategy: str = "tape", execution: str = "eager", n: int = N, each: int = 1):
    """Return the n + 1 rows of a run, and the optimizer, which counts one of `each` so many steps."""
    x = tf.Variable(tf.constant(STARTS[loss], tf.float64))
    optimizer = build.optimizer(node, x)
    step = build.strategy(STRATEGIES[strategy], LOSSES[loss], optimizer, x)
    run = build.execution(EXECUTIONS[execution], step)
    run.last()
    trace = join([*(run.advance(min(run.chunk, n - k)) for k in range(0, n, run.chunk)), run.last()])
    assert int(optimizer.iterations) == n // each and len(trace) == n + 1
    return trace, optimizer


def slow(name: str) -> Any:
    """Return an optimizer at a rate at which none bounces off the walls of these valleys, which magnifies roundings."""
    return changed(name, learning_rate=0.0005)


def in_double_precision(cls: Any, arguments: dict[str, Any]) -> Any:
    """Return an optimizer whose numbers are NumPy's, in double precision: Keras takes Python's for single precision."""
    defaults = {key: each.default for key, each in inspect.signature(cls).parameters.items()}
    numbers = {key: np.float64(value) for key, value in (defaults | arguments).items() if type(value) is float}
    return cls(**arguments | numbers)


@cache
def plain(name: str, loss: str, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return x, loss and gradient of each of n steps of a plain eager loop with the optimizer's own constructor."""
    arguments = {key: value for key, value in OmegaConf.to_container(slow(name)).items() if key != "_target_"}
    optimizer, x = (
        in_double_precision(resolve_name(NODES[name]._target_), arguments),
        tf.Variable(tf.constant(STARTS[loss], tf.float64)),
    )
    found = []
    for k in range(n + 1):
        with tf.GradientTape() as tape:
            y = LOSSES[loss].function(x)
        gradient = tape.gradient(y, x)
        found.append((x.numpy(), y.numpy(), gradient.numpy()))
        if k < n:
            optimizer.apply_gradients([(gradient, x)])
    return tuple(np.array(part) for part in zip(*found, strict=True))


# Two hundred steps in the valley, of which the others have the first forty where there is no time for all.
STEPS = [("rosenbrock", N), ("quadratic", 40), ("ellipsoid", 40)]
STEPS += [pytest.param(loss, N, marks=pytest.mark.long) for loss in ("quadratic", "ellipsoid")]


@pytest.mark.parametrize(("loss", "n"), STEPS)
@pytest.mark.parametrize("name", KERAS)
def test_steps_are_those_of_a_plain_keras_loop(name, loss, n):
    expected = plain(name, loss, n)
    for strategy in STRATEGIES:
        trace, _ = rows(slow(name), loss, strategy, "eager", n)
        for actual, each in zip((trace.x, trace.loss, trace.gradient), expected, strict=True):
            np.testing.assert_array_equal(actual, each)
    for execution in EXECUTIONS.keys() - {"eager"}:
        trace, _ = rows(slow(name), loss, "tape", execution, n)
        for actual, each in zip((trace.x, trace.loss, trace.gradient), expected, strict=True):
            # n steps of a few roundings each, 1e-16, in the order that a compiler likes better; Keras keeps some constants of
            # its optimizers (and Newton-Schulz's) in float32, which a compiler may fold: 6e-8 of a step of at most 0.1.
            np.testing.assert_allclose(actual, each, rtol=1e-6, atol=1e-8 * np.abs(each).max())


def test_every_optimizer_that_keras_exports_has_a_file():
    # The abstract one is not to be built, and three take other optimizers: they wrap, or share out a model's variables.
    wrapping = {"Optimizer", "LossScaleOptimizer", "MultiOptimizer", "OptimizerMap"}
    exported = {name for name, each in vars(keras.optimizers).items() if inspect.isclass(each)} - wrapping
    assert exported == {NODES[name]._target_.rpartition(".")[2] for name in KERAS}


@pytest.mark.parametrize("name", KERAS)
def test_the_keys_are_the_arguments_and_the_values_keras_own(name):
    keys = OmegaConf.to_container(NODES[name])
    parameters = inspect.signature(resolve_name(keys.pop("_target_"))).parameters
    assert list(keys) == [key for key in parameters if key not in ("name", "kwargs")]
    # The rate is a choice of ours where Keras's is too small to see anything move.
    assert all(parameters[key].default == value for key, value in keys.items() if key != "learning_rate")


def cosine(k, n):
    return 0.5 * (1 + cos(pi * min(k, n) / n))


# The published formulas, with the values of the files.
RATES = {
    "cosine_decay": lambda k: 0.1 * cosine(k, 100),
    "cosine_decay_restarts": lambda k: (
        0.1 * (cosine(k, 20) if k < 20 else cosine(k - 20, 40) if k < 60 else cosine(k - 60, 80))
    ),
    "exponential_decay": lambda k: 0.1 * 0.1 ** (k / 100),
    "inverse_time_decay": lambda k: 0.1 / (1 + k / 100),
    "piecewise_constant_decay": lambda k: 0.1 if k <= 50 else 0.01,
    "polynomial_decay": lambda k: (0.1 - 0.0001) * (1 - k / 100) + 0.0001,
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("execution", ["eager", "xla"])
def test_a_schedule_follows_its_formula(name, execution):
    config = OmegaConf.create({"max_iterations": 100, "optimizer": OmegaConf.load(CONF / "optimizer/sgd.yaml")})
    config.optimizer.learning_rate = OmegaConf.load(SCHEDULES[name])
    parameters = inspect.signature(resolve_name(config.optimizer.learning_rate._target_)).parameters
    assert [*parameters] == [*(key for key in config.optimizer.learning_rate if key != "_target_"), "name"] or {
        *parameters
    } == {*config.optimizer.learning_rate, "name"} - {"_target_"}
    trace, _ = rows(config.optimizer, execution=execution, n=100)
    moved = np.diff(trace.x)
    expected = [-RATES[name](k) * gradient for k, gradient in enumerate(trace.gradient[:-1])]
    # Keras computes rates in float32.
    np.testing.assert_allclose(moved, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_gradient_descent_contracts_by_one_minus_twice_its_rate(strategy, execution):
    trace, _ = rows(NODES["sgd"], strategy=strategy, execution=execution, n=100)
    # Keras holds the rate in floatx here, so nothing but roundings of x near 4 remains.
    np.testing.assert_allclose(trace.x, 4 - 4 * 0.8 ** np.arange(101), rtol=0, atol=1e-14)


def changed(name: str, **values: Any) -> Any:
    return OmegaConf.merge(NODES[name], values)


def test_whole_numbers_are_taken_for_floats():
    trace, _ = rows(changed("sgd", learning_rate=1, momentum=0), n=3)
    np.testing.assert_allclose(trace.x, [0, 8, 0, 8])


def test_all_that_does_not_fit_is_told_at_once():
    node = OmegaConf.create({"_target_": "keras.optimizers.SGD", "learnin_rate": 1.0, "momentun": 0.5})
    with pytest.raises(UserError, match=r"(?s)(?=.*did you mean 'learning_rate')(?=.*did you mean 'momentum')"):
        rows(node)
    schedule = {"_target_": "keras.optimizers.schedules.ExponentialDecay", "initial_learning_rate": 0.1, "decay_step": 3}
    with pytest.raises(UserError, match=r"optimizer\.learning_rate\.decay_step is no argument.*did you mean 'decay_steps'"):
        rows(OmegaConf.create({"_target_": "keras.optimizers.SGD", "learning_rate": schedule}))


def test_clipping_decay_and_averaging_are_what_they_say():
    trace, _ = rows(changed("sgd", clipnorm=0.5), "ellipsoid", n=20)
    np.testing.assert_allclose(np.linalg.norm(np.diff(trace.x, axis=0), axis=1), 0.1 * 0.5, rtol=1e-9)
    trace, _ = rows(changed("sgd", clipvalue=0.5), "ellipsoid", n=20)
    np.testing.assert_allclose(np.diff(trace.x, axis=0), -0.1 * np.clip(trace.gradient[:-1], -0.5, 0.5), rtol=1e-9, atol=1e-15)
    # Keras decays first: x <- x (1 - decay · rate), then the step.
    trace, _ = rows(changed("sgd", weight_decay=0.25), n=20)
    np.testing.assert_allclose(trace.x[1:], trace.x[:-1] * (1 - 0.25 * 0.1) - 0.1 * trace.gradient[:-1], rtol=1e-9)
    # Three gradients are summed up and their mean is applied at the third.
    trace, _ = rows(changed("sgd", gradient_accumulation_steps=3), n=6, each=3)
    assert np.count_nonzero(np.diff(trace.x)) == 2


OWN = [
    ("tf_keras.optimizers.SGD", {"learning_rate": 1e-4, "momentum": 0.9}),
    ("tf_keras.optimizers.Adam", {"learning_rate": 0.1}),
    ("tf_keras.optimizers.RMSprop", {"learning_rate": 0.1}),
    ("tensorflow.compat.v1.train.GradientDescentOptimizer", {"learning_rate": 1e-4}),
    ("tensorflow.compat.v1.train.MomentumOptimizer", {"learning_rate": 1e-4, "momentum": 0.9}),
    ("tensorflow.compat.v1.train.AdamOptimizer", {"learning_rate": 0.1}),
]


@pytest.mark.parametrize(("target", "arguments"), OWN, ids=lambda value: value if isinstance(value, str) else "")
def test_an_optimizers_own_minimize_is_called_and_agrees_bit_for_bit(target, arguments, monkeypatch):
    node = OmegaConf.create({"_target_": target, **arguments})
    cls, calls = resolve_name(target), []
    original = cls.minimize

    def minimize(self, *args, **kwargs):
        calls.append(1)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(cls, "minimize", minimize)
    by_minimize, _ = rows(node, "rosenbrock", "minimize", "eager", 50)
    assert len(calls) == 50
    by_tape, _ = rows(node, "rosenbrock", "tape", "eager", 50)
    assert len(calls) == 50
    monkeypatch.undo()

    x, optimizer = tf.Variable(tf.constant(STARTS["rosenbrock"], tf.float64)), in_double_precision(cls, arguments)
    path = [x.numpy()]
    for _ in range(50):
        optimizer.minimize(lambda: losses.rosenbrock(x), var_list=[x])
        path.append(x.numpy())
    for part in ("x", "loss", "gradient"):
        np.testing.assert_array_equal(getattr(by_minimize, part), getattr(by_tape, part))
    np.testing.assert_array_equal(by_minimize.x, path)
    for execution in ("graph", "xla"):
        trace, _ = rows(node, "rosenbrock", "minimize", execution, 50)
        # A float32 constant, as above.
        np.testing.assert_allclose(trace.x, path, rtol=1e-6)


def test_keras_3_has_no_minimize():
    assert not hasattr(keras.optimizers.Optimizer, "minimize")
