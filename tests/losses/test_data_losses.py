"""Losses from data keep the contract, are what scikit-learn takes them to be, and their optima are where it finds them."""

from __future__ import annotations

import inspect
import subprocess
import sys
from functools import cache, partial
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import CONF, ROOT
from data_peers import PEERS
from hydra import compose, initialize_config_dir
from scipy import optimize

import runner.losses
from runner.config import build, schema
from runner.losses import Loss, terms
from runner.losses import data as sets

NAMES = [
    path.stem
    for path in sorted((CONF / "loss").glob("*.yaml"))
    if "data" in inspect.signature(getattr(runner.losses, path.stem)).parameters
]
# One that takes no batch of x has to be stepped alone.
BATCHED = [name for name in NAMES if name != "keras_model"]
EPSILON = {dtype: float(np.finfo(dtype).eps) for dtype in ("float32", "float64")}
of_each = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def floatx():
    """Leave Keras's default dtype as it was."""
    before = keras.config.floatx()
    yield
    keras.config.set_floatx(before)


def composed(*overrides: str) -> Any:
    schema.register()
    with initialize_config_dir(str(CONF), version_base=None):
        return compose("config", overrides=list(overrides))


@cache
def made(name: str, *overrides: str) -> Loss:
    """Return a loss in double precision, with these overrides."""
    return build.loss(composed(f"loss={name}", "dtype=float64", *overrides))


def arrays(loss: Loss) -> tuple[np.ndarray, np.ndarray]:
    """Return the features to fit and the targets that the loss takes."""
    keys = loss.function.keywords
    found = keys["data"].targets
    kind = next(kind for kind in ("classes", "counts", "numbers") if kind in found and (kind != "counts" or "l2" in keys))
    if "counts" in found and loss.function.func.__name__ != "poisson_regression":
        kind = "numbers"
    return keys["data"].features, found[kind][0]


def points(loss: Loss, count: int) -> np.ndarray:
    """Return points around the start."""
    return loss.start + np.random.default_rng(0).normal(scale=0.3, size=(count, *loss.shape))


def value_and_gradient(loss: Any, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = loss(x)
    return value, tape.gradient(value, x)


def close(actual: Any, expected: Any, precision: float) -> None:
    """Assert equality to so many parts of the largest number there."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=precision * max(1.0, float(np.max(np.abs(expected)))))


@pytest.mark.parametrize("dtype", EPSILON)
@pytest.mark.parametrize("name", BATCHED)
def test_shape_dtype_and_broadcasting(name: str, dtype: str) -> None:
    loss = made(name)
    x = tf.constant(points(loss, 6).reshape(2, 3, -1), dtype)
    values, gradients = value_and_gradient(loss, x)
    assert values.shape == (2, 3) and values.dtype == gradients.dtype == x.dtype and gradients.shape == x.shape
    single = [[value_and_gradient(loss, each) for each in row] for row in x]
    # Sums of up to 1,437 rows and 64 features, in another order: their roundings grow by the root of the terms.
    close(values, [[value for value, _ in row] for row in single], 256 * EPSILON[dtype])
    close(gradients, [[gradient for _, gradient in row] for row in single], 256 * EPSILON[dtype])


@of_each
def test_eager_graph_and_xla_agree_and_float32_is_float64_rounded(name: str) -> None:
    loss = made(name)
    x = points(loss, 1)[0].astype(np.float32)
    expected = value_and_gradient(loss, tf.constant(x, tf.float64))
    for dtype in ["float64"] if name == "keras_model" else EPSILON:  # a Keras model has the dtype that it was made with
        for jit_compile in (None, False, True):
            run = partial(value_and_gradient, loss)
            run = run if jit_compile is None else tf.function(run, jit_compile=jit_compile)
            for actual, reference in zip(run(tf.constant(x, dtype)), expected, strict=True):
                close(actual, reference, 256 * EPSILON[dtype])  # as above


@of_each
def test_gradient_is_the_derivative(name: str) -> None:
    loss, random = made(name), np.random.default_rng(1)
    # Of a point where relu has no corner within the step.
    x, step = points(loss, 1)[0], 1e-6
    gradient = value_and_gradient(loss, tf.constant(x))[1].numpy()
    for _ in range(3):
        way = random.normal(size=loss.shape)
        ahead, behind = (float(loss(tf.constant(x + sign * step * way))) for sign in (1, -1))
        # Differences are exact to 1e-12, the step squared, and to the values' rounding over the step, 1e-10.
        assert gradient @ way == pytest.approx((ahead - behind) / (2 * step), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "keras_model"])
def test_another_library_has_the_same_values(name: str) -> None:
    loss = made(name)
    for x in points(loss, 3):
        close(float(loss(tf.constant(x))), PEERS[name].value(x, *arrays(loss)), 1e-12)


@pytest.mark.parametrize("name", [name for name in NAMES if made(name).minimum is not None])
def test_the_minimum_is_where_another_library_finds_it(name: str) -> None:
    loss, peer = made(name), PEERS[name]
    if loss.minimisers is not None:
        value, gradient = value_and_gradient(loss, tf.constant(loss.minimisers[0]))
        close(float(value), loss.minimum, 1e-14)
        close(gradient, np.zeros(loss.shape), 1e-12)  # of rounded sums; all of these losses are convex
    if peer.fitted is None:
        found = optimize.minimize(peer.value, np.zeros(loss.shape), arrays(loss), method="BFGS", options={"gtol": 1e-9}).x
    else:
        found = peer.fitted(*arrays(loss))
    # LinearSVC's intercept is penalised a little, and BFGS takes differences for gradients.
    rough = name in ("svm_squared_hinge", "lasso_smooth")
    assert peer.value(found, *arrays(loss)) == pytest.approx(loss.minimum, rel=1e-5 if rough else 1e-12)
    assert peer.value(found, *arrays(loss)) >= loss.minimum - 1e-14
    if loss.minimisers is not None:
        close(found, loss.minimisers[0], 1e-2 if rough else 1e-8)


def test_the_lasso_nears_scikit_learns() -> None:
    from sklearn.linear_model import Lasso

    loss = made("lasso_smooth", "loss.smoothing=1e-3")
    model = Lasso(alpha=0.1, tol=1e-12).fit(*arrays(loss))
    # Each weight's penalty differs by l1 · smoothing at the most.
    np.testing.assert_allclose(loss.minimisers[0][:-1], model.coef_, atol=2e-3)


@pytest.mark.parametrize(
    "name, overrides",
    [
        ("ridge", ["loss.l2=1e-3", "loss/data=synthetic", "loss.data.condition_number=1e4"]),
        ("linear_regression", ["loss/data=synthetic", "loss.data.condition_number=1e6"]),
        ("logistic_regression", ["loss.l2=1e-4", "loss/data=synthetic", "loss.data.classes=2", "loss.data.noise=1.0"]),
        ("svm_squared_hinge", ["loss.l2=1.0"]),
        ("poisson_regression", ["loss/data=diabetes", "loss.l2=0.0"]),
        ("softmax_regression", ["loss/data=digits", "loss.l2=0.1"]),
        ("matrix_factorization", ["loss/data=iris", "loss.rank=3", "loss.l2=0.0"]),
        ("matrix_factorization", ["loss.rank=3", "loss.l2=20.0"]),
    ],
)
def test_the_minimum_of_other_data_and_penalties_is_what_scipy_reaches(name: str, overrides: list[str]) -> None:
    loss = made(name, *overrides)
    compiled = tf.function(partial(value_and_gradient, loss), autograph=False)
    found = optimize.minimize(
        lambda x: [each.numpy() for each in compiled(tf.constant(x))],
        loss.start,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 5000, "maxfun": 20000, "ftol": 1e-15, "gtol": 1e-9},
    )
    # It ends at gradients of 1e-9, or where the value no longer falls.
    assert found.fun == pytest.approx(loss.minimum, rel=1e-7, abs=1e-9) and found.fun >= loss.minimum - 1e-12


def test_without_a_penalty_classes_that_a_plane_separates_have_no_minimum() -> None:
    for name in ("logistic_regression", "softmax_regression"):
        loss = made(name, "loss.l2=0.0")
        assert loss.minimum is None and loss.minimisers is None


def test_terms_are_named() -> None:
    loss = made("ridge")
    with terms() as named:
        value = loss(tf.constant(points(loss, 1)[0]))
    assert named.keys() == {"data", "penalty"} and float(value) == float(named["data"] + named["penalty"])


def test_least_squares_has_residuals() -> None:
    loss = made("linear_regression")
    x = tf.constant(points(loss, 1)[0])
    close(float(tf.reduce_sum(tf.square(loss.residuals(x)))), float(loss(x)), 1e-14)


def test_a_keras_model_is_what_keras_makes_of_it() -> None:
    loss = made("keras_model", "seed=3")
    model, keys = loss.function.keywords["model"], loss.function.keywords
    features, y = keys["data"].split("classes")
    for x in (loss.start, points(loss, 1)[0]):
        cuts = np.cumsum([each.shape.num_elements() for each in model.trainable_variables])[:-1]
        parts = np.split(x, cuts)
        model.set_weights([part.reshape(each.shape) for part, each in zip(parts, model.trainable_variables, strict=True)])
        with tf.GradientTape() as tape:
            expected = keys["loss"](y, model(features))
        gradients = tape.gradient(expected, [each.value for each in model.trainable_variables])
        value, gradient = value_and_gradient(loss, tf.constant(x))
        close(float(value), float(expected), 1e-14)
        close(gradient, np.concatenate([np.ravel(each) for each in gradients]), 1e-14)
    again, other = (build.loss(composed("loss=keras_model", "dtype=float64", f"seed={seed}")).start for seed in (3, 4))
    assert np.array_equal(again, loss.start) and not np.array_equal(other, loss.start)


def test_a_network_begins_where_its_seed_says() -> None:
    first, again, other = (build.loss(composed("loss=mlp", f"seed={seed}")).start for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


@pytest.mark.parametrize(
    "name, rows, classes",
    [("diabetes", 442, 0), ("breast_cancer", 569, 2), ("wine", 178, 3), ("digits", 1797, 10), ("iris", 150, 3)],
)
def test_bundled_data_are_split_and_standardised(name: str, rows: int, classes: int) -> None:
    from sklearn import datasets

    found = getattr(sets, name)(held_out=0.2, split_seed=0)
    assert found is getattr(sets, name)(held_out=0.2, split_seed=0) and found.classes == classes
    held = round(0.2 * rows)
    assert (len(found.features), len(found.held_out_features)) == (rows - held, held)
    assert all((len(mine), len(its)) == (rows - held, held) for mine, its in found.targets.values())
    varied = found.features.std(axis=0) > 0
    np.testing.assert_allclose(found.features.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(found.features.std(axis=0)[varied], 1, rtol=1e-12)
    # Every row is there once: undone, they are scikit-learn's.
    raw = getattr(datasets, f"load_{name}")()
    both = np.concatenate([found.features, found.held_out_features])
    correlation = [np.corrcoef(np.sort(both[:, i]), np.sort(raw.data[:, i]))[0, 1] for i in np.flatnonzero(varied)]
    np.testing.assert_allclose(correlation, 1, rtol=1e-10)
    other = getattr(sets, name)(held_out=0.2, split_seed=1)
    assert not np.array_equal(found.features, other.features)


def test_synthetic_data_have_the_condition_number() -> None:
    keys = {"rows": 300, "dimension": 8, "noise": 0.0, "held_out": 0.5, "data_seed": 0}
    for wanted in (1.0, 1e5):
        found = sets.synthetic(**keys, condition_number=wanted, classes=None)
        a = np.concatenate([found.features, np.ones((150, 1))], axis=1)
        assert np.linalg.cond(a.T @ a) == pytest.approx(wanted, rel=1e-6)
        assert len(found.held_out_features) == 150 and np.std(found.targets["numbers"][0]) == pytest.approx(1, rel=1e-6)
        assert (found.targets["counts"][0] % 1 == 0).all()
    classes = sets.synthetic(**keys, condition_number=10.0, classes=4).targets["classes"][0]
    assert set(classes) == {0, 1, 2, 3}


WRONG = {
    "loss=ridge loss/data=iris": ("loss.data must have numbers", "diabetes", "3 classes"),
    "loss=poisson_regression loss/data=wine": ("counts", "wine"),
    "loss=logistic_regression loss/data=wine": ("two classes", "breast_cancer", "loss.data.classes=2"),
    "loss=softmax_regression loss/data=diabetes": ("classes", "digits", "numbers and counts"),
    "loss=ridge loss.batch_size=0": ("loss.batch_size", "1 … 354", "null", "got 0"),
    "loss=ridge loss.batch_size=355": ("loss.batch_size", "1 … 354", "got 355"),
    "loss=ridge loss.batch_size=1.5": ("loss.batch_size", "whole number", "got 1.5"),
    "loss=ridge loss/data=mnist": ("loss/data", "'mnist'", "digits"),
    "loss=ridge loss.data=diabetes": ("loss.data='diabetes' contradict each other", "loss/data=diabetes"),
    "loss=ridge loss.data.held_out=1": ("loss.data.held_out", "0 … 0.9", "got 1"),
    "loss=ridge loss.data.split_seed=-1": ("loss.data.split_seed", "got -1"),
    "loss=ridge +loss.data.shuffle=true": ("loss.data.shuffle", "held_out"),
    "loss=ridge loss.l2=-1": ("loss.l2", "0 or more", "got -1"),
    "loss=lasso_smooth loss.smoothing=0": ("loss.smoothing", "above 0"),
    "loss=matrix_factorization loss.rank=14": ("loss.rank", "1 … 13", "142 × 13"),
    "loss=mlp loss.activation=rellu": ("loss.activation", "'rellu'", "did you mean 'relu'"),
    "loss=mlp loss.layers=[8,0]": ("loss.layers", "[8, 0]", "loss.layers=[32,16]"),
    "loss=poisson_regression loss.data.rows=6": ("loss.data.rows", "6 or more", "got 5"),
    "loss=poisson_regression loss.data.condition_number=0.1": ("loss.data.condition_number", "1 or more"),
    "loss=keras_model loss.loss=mean": ("loss.loss", "mean"),
    "loss=keras_model loss.model=net": ("loss.model must be a Keras model", "str"),
    "loss=keras_model loss.model.layers=[{_target_:keras.layers.BatchNormalization}]": ("moving_mean", "BatchNormalization"),
    "loss=keras_model loss.model.layers=[{_target_:keras.layers.Flatten}]": ("loss.model must have weights",),
    "loss=keras_model loss.model.layers=[{_target_:keras.layers.Dense,units:3,width:3}]": ("loss.model", "width"),
}


@pytest.mark.parametrize("words", WRONG)
def test_a_mistake_is_one_line_that_names_what_is_legal(cli, runs, words: str) -> None:
    ended = cli(*words.split())
    assert ended.code == 1 and ended.err.startswith("error: ") and ended.err.count("\n") == 1 and runs() == []
    for part in WRONG[words]:
        assert part in ended.err, ended.err


def test_scikit_learn_is_imported_for_data_alone() -> None:
    code = (
        "import sys; from runner.system import startup\n"
        "with startup.without_optional_imports():\n    from runner import losses\n"
        "before = 'sklearn' in sys.modules\n"
        "losses.data.iris(held_out=0.2, split_seed=0)\n"
        "print(before, 'sklearn' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout == "False True\n"
