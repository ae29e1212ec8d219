"""Every loss of conf/loss with a formula of its own keeps the contract, declares what is true of it, and is what others have.

Those whose facts depend on their arguments, as on data, are in tests/losses/test_data_losses.py.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numdifftools
import numpy as np
import pytest
import tensorflow as tf
import yaml
from conftest import CONF
from loss_peers import PEERS

import runner.losses
from runner.losses import Known, Loss, intermediate, intermediates

ALL_FILES = sorted((CONF / "loss").glob("*.yaml"))
EPSILON = {dtype: float(np.finfo(dtype).eps) for dtype in ("float32", "float64")}


def parts(file: Path) -> tuple[Callable[..., tf.Tensor], dict[str, Any], int | None]:
    """Return the function, its keyword arguments and the dimension of a config file."""
    keys = yaml.safe_load(file.read_text(encoding="utf-8"))
    module, _, name = keys.pop("_target_").rpartition(".")
    dimension = keys.pop("dimension", None)
    return getattr(importlib.import_module(module), name), keys, dimension


FILES = [file for file in ALL_FILES if isinstance(parts(file)[0].known, Known)]


def at_several_dimensions() -> list[Any]:
    """Return one case a file and dimension: the file's own, and 1, 3 and 10 where the loss takes any."""
    cases = []
    for file in FILES:
        function, keywords, dimension = parts(file)
        free = function.known.dimension is None
        for d in sorted({dimension, 3, 10} | {1} if free else {function.known.dimension}):
            if not free or d >= function.known.least:
                cases.append(pytest.param(file.stem, Loss.of(partial(function, **keywords), d), id=f"{file.stem}-{d}"))
    return cases


of_each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
of_each_loss = pytest.mark.parametrize("name, loss", at_several_dimensions())


def points(loss: Loss, count: int, seed: int = 0) -> np.ndarray:
    """Return points drawn evenly from the domain."""
    return np.random.default_rng(seed).uniform(*loss.domain, size=(count, *loss.shape))


def value_and_gradient(loss: Loss, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return both at each point of a batch: the points are independent, so the sum's gradient is that of each."""
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = loss(x)
    return value, tape.gradient(value, x)


def gradient_at(loss: Loss, x: np.ndarray) -> np.ndarray:
    """Return the gradient in float64."""
    return value_and_gradient(loss, tf.constant(x, tf.float64))[1].numpy()


def close(actual: Any, expected: Any, precision: float) -> None:
    """Assert equality to so many parts of the largest number there: terms cancel, and their rounding is what is left."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=precision * max(1.0, float(np.max(np.abs(expected)))))


@of_each_file
def test_config_says_what_it_is(file: Path) -> None:
    first, *rest = file.read_text(encoding="utf-8").splitlines()
    function, keywords, dimension = parts(file)
    assert first.startswith("# ") and rest[0] == f"_target_: runner.losses.{file.stem}"
    assert function.__doc__ and (dimension is not None) == (function.known.dimension is None)
    assert all(isinstance(value, float) for value in keywords.values())


def test_every_known_loss_has_a_config() -> None:
    known = {name for name in runner.losses.__all__ if hasattr(getattr(runner.losses, name), "known")}
    assert known == {file.stem for file in ALL_FILES}


@pytest.mark.parametrize("dtype", EPSILON)
@of_each_loss
def test_shape_dtype_and_broadcasting(name: str, loss: Loss, dtype: str) -> None:
    x = tf.constant(points(loss, 6).reshape(2, 3, *loss.shape), dtype)
    values, gradients = value_and_gradient(loss, x)
    assert values.shape == (2, 3) and values.dtype == gradients.dtype == x.dtype and gradients.shape == x.shape
    assert loss(x[0, 0]).shape == ()
    single = [[value_and_gradient(loss, each) for each in row] for row in x]
    # A batch may be summed in another order than a single point: some roundings, of up to ten terms.
    close(values, [[value for value, _ in row] for row in single], 16 * EPSILON[dtype])
    close(gradients, [[gradient for _, gradient in row] for row in single], 16 * EPSILON[dtype])


@pytest.mark.parametrize("dtype", EPSILON)
@of_each_loss
def test_eager_graph_and_xla_agree(name: str, loss: Loss, dtype: str) -> None:
    # With the points where a gradient is most easily NaN, and in one way of running alone.
    x = tf.constant(np.concatenate([points(loss, 8), loss.minimisers, loss.start[None]]), dtype)
    eager = value_and_gradient(loss, x)
    for jit_compile in (False, True):
        compiled = tf.function(partial(value_and_gradient, loss), jit_compile=jit_compile)(x)
        for actual, expected in zip(compiled, eager, strict=True):
            # XLA reorders and fuses, and has its own sine and exponential, each within a few roundings of the true one; a
            # sine of an argument of a hundred turns loses two digits more.
            close(actual, expected, 256 * EPSILON[dtype])


@of_each_loss
def test_float32_is_float64_rounded(name: str, loss: Loss) -> None:
    x = points(loss, 8).astype(np.float32)
    single, double = (value_and_gradient(loss, tf.constant(x, dtype)) for dtype in EPSILON)
    for actual, expected in zip(single, double, strict=True):
        close(actual, expected, 256 * EPSILON["float32"])  # as between eager and XLA


@of_each_loss
def test_minimum_is_where_and_what_it_is_said_to_be(name: str, loss: Loss) -> None:
    values = loss(tf.constant(loss.minimisers, tf.float64)).numpy()
    np.testing.assert_allclose(values, loss.minimum, rtol=1e-14, atol=1e-14)  # a few roundings of terms of up to a hundred
    assert len(np.unique(loss.minimisers, axis=0)) == len(loss.minimisers)
    low, high = loss.domain
    assert np.all((low <= loss.minimisers) & (loss.minimisers <= high))
    everywhere = loss(tf.constant(points(loss, 20_000))).numpy()
    assert np.all(everywhere > loss.minimum)
    noise = np.random.default_rng(1).normal(size=(1000, 1, *loss.shape))
    for scale in (1e-1, 1e-2, 1e-4):
        around = loss(tf.constant(loss.minimisers + scale * noise)).numpy()
        assert np.all(around >= loss.minimum - 1e-12)  # roundings again: the losses are flat at a minimum


@of_each_loss
def test_slope_at_the_minimisers(name: str, loss: Loss) -> None:
    gradients = gradient_at(loss, loss.minimisers)
    # A minimiser is given to half a rounding, 1e-16, and no curvature at one is above a million.
    np.testing.assert_allclose(gradients, 0.0, atol=1e-10)
    step = 1e-6
    minimiser = loss.minimisers[0]
    ahead = minimiser + step * np.concatenate([np.eye(minimiser.size), -np.eye(minimiser.size)]).reshape(-1, *loss.shape)
    slopes = (loss(tf.constant(ahead)).numpy() - loss.minimum) / step
    if loss.function.func.known.smooth:
        assert np.all(np.abs(slopes) < 1e-2)  # half a step's length times the curvature
    else:
        assert np.all(slopes > 1e-1)  # it climbs at once on either side: there is no gradient to speak of, and 0 is returned


@of_each_loss
def test_start_is_in_the_domain_and_not_stationary(name: str, loss: Loss) -> None:
    low, high = loss.domain
    assert loss.start.shape == loss.shape and np.all((low <= loss.start) & (loss.start <= high))
    gradient = gradient_at(loss, loss.start)
    assert np.all(np.isfinite(gradient)) and np.linalg.norm(gradient) > 1e-2


# Of the functions of their own standard starts: MGH (1981) and Rosenbrock (1960).
@pytest.mark.parametrize(
    "name, value",
    [("rosenbrock", 24.2), ("beale", 14.203125), ("helical_valley", 2500.0), ("powell_singular", 215.0), ("wood", 19192.0)],
)
def test_loss_at_the_standard_start(name: str, value: float) -> None:
    function = getattr(runner.losses, name)
    loss = Loss.of(function, function.known.dimension or 2)
    assert float(loss(tf.constant(loss.start))) == pytest.approx(value, rel=1e-14)


def test_helical_valley_is_smooth_at_its_start() -> None:
    values, gradients = value_and_gradient(
        Loss.of(runner.losses.helical_valley), tf.constant([[-1.0, y, 0.0] for y in (-1e-9, -0.0, 0.0)])
    )
    # The half turn: atan2 alone gives -1/2 for the first two and the same value there, but a gradient of the other sign.
    np.testing.assert_allclose(values, 2500.0, rtol=1e-6)  # float32
    np.testing.assert_allclose(gradients[:2], [gradients[2]] * 2, rtol=1e-6, atol=1e-4)  # of numbers of a thousand


@of_each_loss
def test_gradient_is_the_derivative(name: str, loss: Loss) -> None:
    compiled = tf.function(loss.function)
    for x in points(loss, 2, seed=2):
        derivative = numdifftools.Gradient(lambda flat, x=x: compiled(tf.constant(flat.reshape(x.shape))).numpy())
        # The extrapolated differences are exact to some 1e-10 of the loss over a step of 1e-2.
        close(gradient_at(loss, x), derivative(np.atleast_1d(x)).reshape(x.shape), 1e-7)


@of_each_file
def test_wrong_dimension_names_what_is_allowed(file: Path) -> None:
    function, keywords, _ = parts(file)
    facts = function.known
    wrong = facts.least - 1 if facts.dimension is None else facts.dimension + 1
    allowed = f"{facts.least} or more" if facts.dimension is None else str(facts.dimension)
    with pytest.raises(ValueError, match=f"^loss.dimension must be {allowed}, got {wrong}; "):
        Loss.of(partial(function, **keywords), wrong)
    if facts.dimension is None:
        with pytest.raises(ValueError, match=f"{allowed}, got None; set it with loss.dimension=2"):
            Loss.of(partial(function, **keywords))
    else:
        assert Loss.of(function).shape == ((facts.dimension,) if facts.dimension else ())


@of_each_loss
def test_another_library_has_the_same_values_and_gradients(name: str, loss: Loss) -> None:
    assert name in PEERS, f"add the peer of conf/loss/{name}.yaml in another library to tests/loss_peers.py"
    peer = PEERS[name]
    x = points(loss, 5, seed=3)
    values, gradients = value_and_gradient(loss, tf.constant(x))
    close(values, [peer.value(each) for each in x], 1e-13)  # another order of the same terms
    # Differences are exact to some 1e-10 of the loss over a step of 1e-2; a gradient derived by hand to the roundings.
    close(gradients, [peer.slope(each) for each in x], 1e-13 if peer.gradient else 1e-7)


def test_intermediates_are_named_within_the_block_alone() -> None:
    x = tf.constant([1.0, 6.0])
    with intermediates() as outer:
        with intermediates() as inner:
            runner.losses.quadratic(x)
        assert list(inner) == ["z"] and outer == {}
        np.testing.assert_array_equal(inner["z"], [-3.0, 2.0])
        intermediate("y", x)
    runner.losses.quadratic(x)
    assert list(outer) == ["y"] and list(inner) == ["z"]
    assert intermediate("y", x) is x


@pytest.mark.parametrize("jit_compile", [False, True])
def test_intermediates_leave_a_compiled_function(jit_compile: bool) -> None:
    @tf.function(jit_compile=jit_compile)
    def both(x: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        with intermediates() as named:
            return runner.losses.quadratic(x), dict(named)

    value, named = both(tf.constant(1.0))
    assert float(value) == 9.0 and {name: float(each) for name, each in named.items()} == {"z": -3.0}


@pytest.mark.parametrize("dimension, shape", [(None, None), (0, ()), (3, (3,))])
def test_a_plain_function_serves(dimension: int | None, shape: tuple[int, ...] | None) -> None:
    def quartic(x: tf.Tensor, *, scale: float) -> tf.Tensor:
        return scale * x**4

    loss = Loss.of(partial(quartic, scale=2.0), dimension)
    assert loss.shape == shape
    assert (loss.domain, loss.start, loss.minimisers, loss.minimum) == (None,) * 4
    assert float(loss(tf.constant(3.0))) == 162.0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["matyas", "styblinski_tang", "six_hump_camel", "three_hump_camel"])
def test_a_loss_that_overflows_is_infinite_and_no_nan(name, dtype):
    for size in (1e-30, 1e-10, 1e-3, 1e3, 1e10, 1e30, *([1e300] if dtype == "float64" else [])):
        for signs in ([1, 1], [-1, -1], [1, -1], [1, 0], [0, 1]):
            x = tf.constant(np.array(signs) * size, dtype)
            with tf.GradientTape() as t:
                t.watch(x)
                y = getattr(runner.losses, name)(x)
            assert not np.isnan(y) and not np.isnan(t.gradient(y, x)).any(), x
