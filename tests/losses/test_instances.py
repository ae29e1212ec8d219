"""An instance is the loss somewhere else, turned and stretched: all that is known of it is true of the instance too."""

from __future__ import annotations

from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_fused import TOLERANCE, afresh, alone, jobs, plugins, same, together  # noqa: F401 (two are fixtures)
from test_losses import at_several_dimensions, gradient_at, points, value_and_gradient

from runner.errors import UserError
from runner.losses import Loss, ellipsoid, instances, noise, rosenbrock, sphere

WHOLE = {"seed": 3, "shift": 0.8, "rotation": True, "scaling": 10.0}
of_each_loss = pytest.mark.parametrize("name, loss", at_several_dimensions())


def parts(**changed: object) -> tuple[np.ndarray, np.ndarray, Loss]:
    """Return the matrix M and the vector v of an instance of x[4], by the sphere's formula: z = M x + v, and the instance."""
    seen: list[tf.Tensor] = []
    of = Loss.of(sphere, 4)
    watched = Loss(lambda x: seen.append(x) or of(x), of.shape, of.domain, of.start, of.minimisers, of.minimum)
    instance = instances.random(watched, **WHOLE | changed)
    instance(tf.constant(np.concatenate([np.zeros((1, 4)), np.eye(4)])))
    (z,) = seen
    return (z[1:] - z[0]).numpy().T, z[0].numpy(), instance


@of_each_loss
def test_what_is_known_stays_true(name: str, loss: Loss) -> None:
    instance = instances.random(loss, **WHOLE)
    assert instance.shape == loss.shape and instance.minimum == loss.minimum
    values, slopes = instance(tf.constant(instance.minimisers)).numpy(), gradient_at(instance, instance.minimisers)
    # A minimiser of size 1000 (griewank) is off by a rounding of 1e-13, and no curvature at one is above a million.
    size = max(1.0, float(np.abs(instance.minimisers).max()))
    np.testing.assert_allclose(values, loss.minimum, rtol=1e-13, atol=1e-13 * size)
    np.testing.assert_allclose(slopes, 0.0, atol=1e-9 * size)
    np.testing.assert_allclose(instance(tf.constant(instance.start)), loss(tf.constant(loss.start)), rtol=1e-9, atol=1e-12)
    low, high = instance.domain
    for x in (instance.minimisers, instance.start):
        assert np.all((low <= x) & (x <= high))
    assert np.all(instance(tf.constant(points(instance, 5000))).numpy() > loss.minimum)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "name, loss", [case for case in at_several_dimensions() if case.id in ("quadratic-0", "rosenbrock-10")]
)
def test_it_broadcasts_keeps_the_dtype_and_is_the_same_in_every_execution(name: str, loss: Loss, dtype: str) -> None:
    instance = instances.random(loss, **WHOLE)
    x = tf.constant(points(instance, 6).reshape(2, 3, *loss.shape), dtype)
    values, gradients = value_and_gradient(instance, x)
    assert values.shape == (2, 3) and values.dtype == x.dtype and gradients.shape == x.shape
    precision = 256 * np.finfo(dtype).eps  # of sums in another order, enlarged by a valley's walls
    for how in ({}, {"jit_compile": True}):
        for actual, expected in zip(
            tf.function(partial(value_and_gradient, instance), **how)(x), (values, gradients), strict=True
        ):
            np.testing.assert_allclose(actual, expected, rtol=0, atol=precision * np.abs(expected).max())
    one = value_and_gradient(instance, x[1, 2])
    np.testing.assert_allclose(one[0], values[1, 2], rtol=precision)


def test_the_gradient_is_the_chain_rule_s() -> None:
    matrix, vector, instance = parts()
    x = np.random.default_rng(0).normal(size=(5, 4))
    z = x @ matrix.T + vector
    np.testing.assert_allclose(gradient_at(instance, x), 2 * z @ matrix, rtol=1e-12)
    # And the minimiser solves z = 0.
    np.testing.assert_allclose(instance.minimisers, [np.linalg.solve(matrix, -vector)], rtol=1e-12)


def test_each_of_the_three_can_be_off_and_leaves_the_others() -> None:
    whole, *_ = parts()
    turned, *_ = parts(scaling=1.0)
    np.testing.assert_allclose(turned @ turned.T, np.eye(4), atol=1e-14)
    assert np.abs(turned).max() < 0.99  # and it does turn
    stretched, *_ = parts(rotation=False)
    np.testing.assert_array_equal(stretched, np.diag(np.diag(stretched)))
    np.testing.assert_allclose(whole, stretched @ turned, atol=1e-15)
    factors = 1 / np.diag(stretched)
    assert np.all((factors >= 10**-0.25) & (factors <= 10**0.25)) and len(np.unique(factors)) == 4
    matrix, _, instance = parts(rotation=False, scaling=1.0)
    np.testing.assert_array_equal(matrix, np.eye(4))
    of = Loss.of(sphere, 4)
    moved = instance.minimisers - of.minimisers
    assert np.all(np.abs(moved) <= 0.8 * 5.12) and np.all(moved != 0)
    np.testing.assert_allclose(instance.domain, of.domain + moved, rtol=1e-14)
    *_, instance = parts(shift=0.0, rotation=False, scaling=1.0)
    np.testing.assert_array_equal(instance.domain, of.domain)
    np.testing.assert_array_equal(instance.start, of.start)


def test_the_seed_decides() -> None:
    starts = [instances.random(Loss.of(rosenbrock, 3), **WHOLE | {"seed": seed}).start for seed in (1, 1, 2)]
    np.testing.assert_array_equal(starts[0], starts[1])
    assert not np.isin(starts[0], starts[2]).any()


def test_every_direction_is_as_likely_as_any_other() -> None:
    draw = np.random.default_rng(0)
    first = np.array([instances.orthogonal(draw, 3)[:, 0] for _ in range(4000)])
    # A coordinate of a point drawn evenly from the sphere is even on [-1, 1] (Archimedes): variance 1/3, either sign.
    assert np.abs(first.mean(axis=0)).max() < 5 * np.sqrt(1 / 3 / 4000)
    assert np.abs((first**2).mean(axis=0) - 1 / 3).max() < 5 * np.sqrt(4 / 45 / 4000)


def path(loss: Loss, optimizer: keras.optimizers.Optimizer, steps: int = 50) -> np.ndarray:
    """Return the points of a run from the loss's start."""
    x = tf.Variable(loss.start)
    optimizer.build([x])
    found = []
    for _ in range(steps):
        found.append(x.numpy())
        optimizer.apply_gradients([(value_and_gradient(loss, tf.convert_to_tensor(x))[1], x)])
    return np.array(found)


@pytest.fixture
def double():
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    yield
    keras.config.set_floatx(before)


def test_gradient_descent_turns_along_and_adam_does_not(double) -> None:
    of = Loss.of(partial(ellipsoid, condition_number=10.0), 4)
    instance = instances.random(of, **WHOLE | {"scaling": 1.0})
    matrix, *_ = parts(scaling=1.0)
    centre = instance.minimisers[0]
    for make, follows in (
        (lambda: keras.optimizers.SGD(0.05, momentum=0.5), True),
        (lambda: keras.optimizers.Adam(0.1), False),
    ):
        turned = (path(instance, make()) - centre) @ matrix.T
        plain = path(of, make()) - of.minimisers[0]
        away = np.abs(turned - plain).max()
        assert away < 1e-12 if follows else away > 0.1, (make, away)


def test_without_a_domain_it_is_about_zero_and_cannot_move() -> None:
    of = Loss(lambda x: tf.reduce_sum(x**4, axis=-1), (2,))
    instance = instances.random(of, **WHOLE | {"shift": 0.0})
    assert float(instance(tf.zeros(2))) == 0.0 and instance.domain is instance.start is instance.minimisers is None
    with pytest.raises(UserError, match=r"^instance.shift .* set instance.shift=0$"):
        instances.random(of, **WHOLE)
    with pytest.raises(UserError, match=r"dimension.*; instance.seed.*; instance.shift.*; instance.scaling"):
        instances.random(Loss(tf.square, None), seed=-1, shift=2.0, rotation=True, scaling=0.5)


def test_measures_and_random_losses_go_along() -> None:
    of = noise.gaussian(Loss.of(sphere, 4), seed=0, loss=1.0, gradient=0.0)
    instance = instances.random(of, **WHOLE)
    x = tf.constant(instance.minimisers[0])
    assert float(instance.measures["full_loss"](x)) == pytest.approx(0, abs=1e-25) and instance.seed == 0
    assert of.residuals is None
    with_residuals = Loss(of.measures["full_loss"], (4,), of.domain, residuals=tf.identity)
    residuals = instances.random(with_residuals, **WHOLE).residuals
    np.testing.assert_allclose(residuals(x), np.zeros(4), atol=1e-12)
    assert float(instance.at(3)(x)) == pytest.approx(float(of.at(3)(tf.zeros(4, tf.float64))), rel=1e-12)


def test_fused_jobs_are_what_they_are_alone() -> None:
    cfgs = jobs("instance=random", "max_iterations=40", optimizer__learning_rate=[1e-5, 1e-4], seed=[0, 1, 2])
    found, results = together(cfgs)
    assert len(found) == 1
    for mine, its in zip(results, alone(cfgs), strict=True):
        same(mine, its, TOLERANCE["float32"])


def test_each_instance_is_a_loss_of_its_own_and_a_run_knows_its_minimum(cli, runs) -> None:
    words = ("loss=sphere", "instance=random", "instance.scaling=1", "max_iterations=60", "hydra/launcher=fused")
    assert cli("-m", *words, "instance.seed=1,2").code == 0
    first, second = (run.data for run in runs())
    assert first.tags["instance"] == "random" and first.params["instance.seed"] == "1"
    assert first.metrics["x/0"] != second.metrics["x/0"]
    for each in (first, second):
        # 0.8^60 of the way, in float32.
        assert each.metrics["system/distance_to_minimiser"] < 2e-5 and abs(each.metrics["system/loss_above_minimum"]) < 1e-9


def test_a_mistake_is_one_line(cli, runs) -> None:
    ended = cli("instance=random", "instance.seed=-1", "instance.scaling=0.5")
    assert ended.code == 1 and ended.err.count("\n") == 1
    assert "instance.seed" in ended.err and "instance.scaling" in ended.err and runs() == []
