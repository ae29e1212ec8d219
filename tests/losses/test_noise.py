"""Noise has the distribution that it says, the same in every execution, and leaves the loss that it is added to as it was."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from conftest import history
from test_fused import TOLERANCE, afresh, alone, jobs, plugins, same, together  # noqa: F401 (two are fixtures)

from runner.losses import Loss, draws, ellipsoid, noise, quadratic, rosenbrock

STEPS = 20_000
LAWS = {
    "gaussian": (noise.gaussian, {}, scipy.stats.norm()),
    "student_t": (noise.student_t, {"degrees_of_freedom": 5.0}, scipy.stats.t(5)),
    "cauchy": (noise.student_t, {"degrees_of_freedom": 1.0}, scipy.stats.cauchy()),
}
SEED = tf.constant([3, 17], tf.int64)


def drawn(loss: Loss, x: np.ndarray, steps: int, **how: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the loss and the gradient at x in each of so many steps."""

    def of_step(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            point = tf.constant(x)
            tape.watch(point)
            y = loss.at(step)(point)
        return y, tape.gradient(y, point)

    dtype = tf.as_dtype(x.dtype)
    every = tf.function(lambda: tf.map_fn(of_step, tf.range(steps), fn_output_signature=(dtype, dtype)), **how)
    loss_, gradient = every()
    return loss_.numpy(), gradient.numpy()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("law", LAWS)
def test_it_has_the_distribution_of_its_name(law: str, dtype: str) -> None:
    wrap, keys, expected = LAWS[law]
    of = Loss.of(partial(ellipsoid, condition_number=10.0), 3)
    x = np.array([1.0, -2.0, 0.5], dtype)
    y, gradient = drawn(wrap(of, seed=5, loss=0.5, gradient=2.0, **keys), x, STEPS, jit_compile=True)
    curvatures = 10.0 ** np.linspace(0, 1, 3)
    a = (y - np.sum(curvatures * x**2)) / 0.5
    b = (gradient - 2 * curvatures * x) / 2.0
    for each in (a, *b.T):
        # Kolmogorov and Smirnov's distance passes 2 / √n by chance once in 1500 times.
        assert scipy.stats.kstest(each, expected.cdf).statistic < 2 / np.sqrt(STEPS)
        if np.isfinite(expected.var()):
            # Within five standard errors; that of the variance by the fourth moment, where there is one.
            assert abs(each.mean()) < 5 * expected.std() / np.sqrt(STEPS)
            error = np.sqrt((expected.moment(4) - expected.var() ** 2) / STEPS)
            assert abs(each.var() - expected.var()) < 5 * error
    # Loss and coordinates are independent of each other and from step to step; ranks, for tails that have no moments.
    columns = np.column_stack([a, b, np.roll(a, 1), np.roll(b, 1, axis=0)])
    correlations = scipy.stats.spearmanr(columns).statistic - np.eye(8)
    assert np.abs(correlations).max() < 5 / np.sqrt(STEPS)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("law", LAWS)
def test_eager_graph_and_xla_draw_the_same(law: str, dtype: str) -> None:
    wrap, keys, _ = LAWS[law]
    loss = wrap(Loss.of(rosenbrock, 2), seed=5, loss=0.5, gradient=2.0, **keys)
    x = np.array([-1.2, 1.0], dtype)
    tf.config.run_functions_eagerly(True)
    try:
        eager = drawn(loss, x, 50)
    finally:
        tf.config.run_functions_eagerly(False)
    for jit_compile in (False, True):
        for actual, expected in zip(drawn(loss, x, 50, jit_compile=jit_compile), eager, strict=True):
            # The integers are equal; logarithm, cosine and power have a few roundings of their own in each.
            np.testing.assert_allclose(actual, expected, rtol=64 * np.finfo(dtype).eps)


def test_uniform_numbers_lie_within_and_are_the_same_bits_everywhere() -> None:
    for dtype in (tf.float32, tf.float64):
        draw = partial(draws.uniform, SEED, 1, [1000], dtype)
        eager = draw()
        for jit_compile in (False, True):
            np.testing.assert_array_equal(tf.function(draw, jit_compile=jit_compile)(), eager)
        assert 0 < np.min(eager) < 0.01 and 0.99 < np.max(eager) < 1
        assert not np.isin(draws.uniform(SEED, 2, [1000], dtype), eager).any()


def test_the_ends_of_the_integers_stay_within(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype, (integers, _, kept) in draws.BITS.items():
        ends = tf.constant([0, integers.max], integers)
        monkeypatch.setattr(draws, "bits", lambda *_, ends=ends: ends)
        low, high = draws.uniform(SEED, 1, [2], dtype).numpy()
        assert low == 0.5**kept / 2 and high == 1 - 0.5**kept / 2 < 1


def test_bailey_s_formula_ends_in_box_and_muller_s() -> None:
    almost = draws.student_t(SEED, 1, [100], tf.float64, degrees_of_freedom=1e12)
    np.testing.assert_allclose(almost, draws.normal(SEED, 1, [100], tf.float64), rtol=1e-10)


def test_the_seed_and_the_step_decide_alone() -> None:
    x = np.float32(1.5)
    wrapped = [noise.gaussian(Loss.of(quadratic), seed=seed, loss=1.0, gradient=1.0) for seed in (0, 0, 1)]
    first, again, other = (drawn(loss, x, 20) for loss in wrapped)
    for part in range(2):
        np.testing.assert_array_equal(first[part], again[part])
        assert not np.isin(first[part], other[part]).any()
        assert len(np.unique(first[part])) == 20
    # Noise of the loss alone leaves the gradient, and the other way round.
    y, gradient = drawn(noise.gaussian(Loss.of(quadratic), seed=0, loss=1.0, gradient=0.0), x, 20)
    np.testing.assert_array_equal(y, first[0])
    assert set(gradient) == {np.float32(-5)}
    y, gradient = drawn(noise.gaussian(Loss.of(quadratic), seed=0, loss=0.0, gradient=1.0), x, 20)
    np.testing.assert_array_equal(gradient, first[1])
    assert set(y) == {np.float32(6.25)}


def test_all_of_a_batch_have_the_same_noise_and_the_loss_is_still_known() -> None:
    of = Loss.of(rosenbrock, 2)
    loss = noise.gaussian(of, seed=0, loss=1.0, gradient=1.0)
    x = tf.constant(np.random.default_rng(0).normal(size=(2, 3, 2)))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        noisy, exact = loss.at(4)(x), of(x)
    np.testing.assert_allclose(noisy - exact, np.full((2, 3), (noisy - exact)[0, 0]), rtol=1e-12)
    added = (tape.gradient(noisy, x) - tape.gradient(exact, x)).numpy()
    np.testing.assert_allclose(added, np.broadcast_to(added[0, 0], added.shape), atol=1e-12)  # of gradients of a thousand
    np.testing.assert_array_equal(loss.measures["full_loss"](x), exact)
    assert loss.minimum == 0 and loss.minimisers is of.minimisers and noise.none(of) is of


def test_a_random_loss_keeps_its_draws_and_its_measures() -> None:
    full: Callable[[tf.Tensor], tf.Tensor] = tf.square
    of = Loss(lambda x, *, seed: tf.square(x) + draws.uniform(seed, 0, [], x.dtype), (), seed=9, measures={"full_loss": full})
    loss = noise.gaussian(of, seed=9, loss=0.0, gradient=1.0)
    assert loss.seed == 9 and loss.measures["full_loss"] is full
    x = tf.constant(2.0)
    assert float(loss.at(7)(x)) == float(of.at(7)(x))


@pytest.mark.parametrize("words", [["noise=gaussian"], ["noise=student_t", "instance=random", "optimizer=adam"]])
def test_fused_jobs_are_what_they_are_alone(words: list[str]) -> None:
    # Of one seed, which draws once for all lanes.
    cfgs = jobs(*words, "noise.loss=0.3", "max_iterations=40", "seed=4", optimizer__learning_rate=[1e-5, 1e-4, 1e-3])
    found, results = together(cfgs)
    assert len(found) == 1
    for mine, its in zip(results, alone(cfgs), strict=True):
        same(mine, its, TOLERANCE["float32"])


def test_jobs_of_other_noise_are_no_lanes_of_one_program() -> None:
    from runner.fused import groups

    cfgs = jobs("noise=gaussian", noise__loss=[0.1, 0.2], seed=[0, 1])
    prepared = [groups.prepared(i, cfg, {}) for i, cfg in enumerate(cfgs)]
    assert len({job.constants for job in prepared}) == 2 and [job.numbers["seed"] for job in prepared] == [0, 1, 0, 1]


RANDOM = {
    "noise": ["noise=gaussian", "noise.loss=0.3", "noise.gradient=0.2"],
    "heavy noise of a scalar": ["loss=quadratic", "noise=student_t"],
    "mini-batches": ["loss=logistic_regression", "loss/data=breast_cancer", "loss.batch_size=7"],
    "mini-batches and noise": ["loss=ridge", "loss/data=diabetes", "loss.batch_size=32", "noise=gaussian", "dtype=float64"],
    "mini-batches of a network": ["loss=mlp", "loss.batch_size=16", "optimizer=adam"],
}


@pytest.mark.parametrize("words", RANDOM.values(), ids=RANDOM)
def test_jobs_of_other_seeds_draw_each_for_itself_in_one_program(words: list[str]) -> None:
    cfgs = jobs(*words, "max_iterations=40", seed=[0, 7, 2**32 - 1], optimizer__learning_rate=[1e-4, 1e-3])
    (group,), results = together(cfgs)
    assert {*group.columns} == {"learning_rate", "seed"}
    dtype = cfgs[0].dtype.name
    for mine, its in zip(results, alone(cfgs), strict=True):
        same(mine, its, TOLERANCE[dtype])
    assert len({trace.loss[1:].tobytes() for trace, _ in results}) == 6
    # As many jobs of each seed as fill a program draw once a step for all of them.
    many = jobs(*words, "max_iterations=4", seed=[0, 1], optimizer__learning_rate=np.linspace(1e-4, 1e-3, 8).tolist())
    groups, _ = together(many)
    assert [group.columns for group in groups] == [("learning_rate",)] * 2


def test_a_noisy_run_records_the_loss_without_the_noise(cli, runs, tmp_path) -> None:
    words = ("loss=sphere", "noise=student_t", "noise.gradient=0.5", "max_iterations=20", "tracking.full_loss_every=1")
    assert cli(*words).code == 0
    (run,) = runs()
    noisy, full, *x = (history(tmp_path, run.info.run_id, name) for name in ("loss", "full_loss", "x/0", "x/1"))
    exact = np.array([*x[0].values()]) ** 2 + np.array([*x[1].values()]) ** 2
    np.testing.assert_allclose([*full.values()], exact, rtol=1e-6)
    assert np.abs(np.array([*noisy.values()]) - exact).min() > 1e-5
    assert run.data.metrics["system/loss_above_minimum"] == full[20]


def test_a_noisy_run_is_the_same_again_and_in_every_execution(cli, runs, tmp_path) -> None:
    words = ("loss=sphere", "noise=gaussian", "noise.gradient=0.5", "max_iterations=20", "sweep.reuse=false")
    assert cli("-m", "execution=xla,eager,graph,xla", *words).code == 0
    xla, *others, again = ([*history(tmp_path, run.info.run_id, "x/0").values()] for run in runs())
    assert xla == again and len(set(xla)) == 21
    for other in others:
        # Noise of a few roundings' difference, 0.1 of it a step.
        np.testing.assert_allclose(other, xla, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "words, parts",
    [
        ("noise=gaussian noise.loss=-1", ("noise.loss", "0 or more", "-1")),
        ("noise=student_t noise.degrees_of_freedom=0", ("noise.degrees_of_freedom", "above 0", "0")),
        ("noise=gaussian noise.gradient=much", ("noise.gradient", "a number", "'much'")),
        ("noise=gausian", ("noise", "did you mean 'gaussian'")),
    ],
)
def test_a_mistake_is_one_line(cli, runs, words: str, parts: tuple[str, ...]) -> None:
    ended = cli(*words.split())
    assert ended.code == 1 and ended.err.startswith("error: ") and ended.err.count("\n") == 1
    assert all(part in ended.err for part in parts), ended.err
    assert runs() == []
