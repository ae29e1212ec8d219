"""What a step records and what the tape's switches do, in every execution; and what executions promise the loop."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from conftest import CONF, strategies
from omegaconf import OmegaConf

from runner import losses
from runner.config import build
from runner.errors import Incompatible, UserError
from runner.losses import Loss
from runner.trace import join

STRATEGIES = strategies(without_optimizer=False)
EXECUTIONS = {path.stem: OmegaConf.load(path) for path in sorted((CONF / "execution").glob("*.yaml"))}
SGD = OmegaConf.load(CONF / "optimizer" / "sgd.yaml")
QUADRATIC = Loss.of(losses.quadratic)


def running(function: Any = QUADRATIC, execution: str = "eager", strategy: str = "tape", x0: Any = 0.0, **switches: Any):
    """Return an execution of SGD on a loss, with these switches of the strategy."""
    x = tf.Variable(tf.constant(x0, tf.float32))
    optimizer = build.optimizer(SGD, x)
    node = OmegaConf.merge(STRATEGIES[strategy], switches)
    loss = function if isinstance(function, Loss) else Loss(function, tuple(x.shape))
    return build.execution(EXECUTIONS[execution], build.strategy(node, loss, optimizer, x))


def steps(run: Any, *sizes: int):
    """Return the rows of so many steps at a time, and the last one."""
    run.last()
    return join([*(run.advance(size) for size in sizes), run.last()])


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_intermediates_and_their_gradients_are_recorded(execution):
    trace = steps(running(execution=execution, persistent=True, intermediates=True), 1, 1, 1)
    np.testing.assert_array_equal(trace.named["intermediate/z"], trace.x - 4)
    np.testing.assert_array_equal(trace.named["intermediate_gradient/z"], np.ones(4))
    np.testing.assert_array_equal(trace.gradient, 2 * trace.named["intermediate/z"])


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_terms_are_recorded_with_their_gradients_norms_and_the_angle_between_them(execution):
    def composite(x):
        data = losses.term("data", tf.reduce_sum((x - [1.0, 2.0]) ** 2))
        return data + losses.term("penalty", tf.reduce_sum(x**2) / 2)

    trace = steps(running(composite, execution, x0=[3.0, 0.0], persistent=True, terms=True), 3)
    data, penalty = 2 * (trace.x - [1, 2]), trace.x
    np.testing.assert_allclose(trace.named["term/data"], ((trace.x - [1, 2]) ** 2).sum(axis=1), rtol=1e-6)
    np.testing.assert_allclose(trace.named["term/data"] + trace.named["term/penalty"], trace.loss, rtol=1e-6)
    norms = [np.linalg.norm(each, axis=1) for each in (data, penalty)]
    for name, norm in zip(("data", "penalty"), norms, strict=True):
        np.testing.assert_allclose(trace.named[f"term_gradient_norm/{name}"], norm, rtol=1e-6)
    angles = np.degrees(np.arccos((data * penalty).sum(axis=1) / norms[0] / norms[1]))
    # The arc cosine loses half of the digits near 0 degrees, where these angles are not.
    np.testing.assert_allclose(trace.named["term_angle/data-penalty"], angles, rtol=1e-4)


def test_terms_take_a_persistent_tape_and_a_loss_that_names_some():
    with pytest.raises(UserError, match=r"strategy\.terms: .*set strategy\.persistent=true"):
        running(lambda x: losses.term("all", x * x), terms=True).last()
    with pytest.raises(Incompatible, match="this one names none"):
        running(terms=True, persistent=True).last()


def test_a_tape_that_is_not_persistent_answers_once_in_tensorflows_words():
    with pytest.raises(RuntimeError) as told, tf.GradientTape() as tape:
        x = tf.constant(1.0)
        tape.watch(x)
        y = x * x
        tape.gradient(y, x)
        tape.gradient(y, x)
    with pytest.raises(UserError) as error:
        running(intermediates=True).last()
    assert str(told.value).rstrip(".") in str(error.value) and "strategy.persistent=true" in str(error.value)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_a_tape_that_watches_nothing_by_itself_is_told_what_to_watch(execution):
    told = steps(running(execution=execution, watch_accessed_variables=False), 1, 1)
    np.testing.assert_array_equal(told.x, steps(running(execution=execution), 1, 1).x)
    with pytest.raises(UserError, match=r"watches nothing .* set strategy\.watch=true"):
        running(execution=execution, watch_accessed_variables=False, watch=False).last()


@pytest.mark.parametrize("variable", [tf.constant(3.0), tf.Variable(3.0, trainable=False)])
def test_what_is_not_watched_by_itself_has_no_gradient_until_it_is(variable):
    for watch in (False, True):
        with tf.GradientTape() as tape:
            if watch:
                tape.watch(variable)
            y = variable**2
        assert (tape.gradient(y, variable) is not None) == watch


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("function", "x0", "words"),
    [
        (lambda x: x * 2, [1.0, 2.0], r"one number, got shape \(2,\)"),
        (lambda x: 3.0, 1.0, "must return a tf.Tensor, got float"),
        (lambda x: tf.cast(x, tf.int32), 1.0, "dtype float32, got int32"),
        (lambda x: tf.cast(x, tf.complex64), 1.0, "dtype float32, got complex64"),
        (lambda x: tf.constant(3.0), 1.0, "does not depend on x"),
        (lambda x: tf.round(tf.stop_gradient(x)), 1.0, "does not depend on x"),
    ],
)
def test_what_is_no_loss_is_told_before_the_first_step(execution, strategy, function, x0, words):
    with pytest.raises(UserError, match=words):
        running(function, execution, strategy, x0).last()


def test_one_step_computes_the_loss_once_and_records_the_gradient_that_it_applies():
    for strategy in STRATEGIES:
        calls = []

        def loss(x, calls=calls):
            calls.append(float(x))
            return (x - 4) ** 2

        run = running(loss, strategy=strategy)
        trace = join([run.advance(1) for _ in range(5)])
        # Plain Python: once a step, and at the very x of the row.
        assert calls == trace.x.tolist()
        np.testing.assert_array_equal(trace.x[1:], trace.x[:-1] - np.float32(0.1) * trace.gradient[:-1])


@pytest.mark.parametrize("execution", ["graph", "xla"])
def test_a_program_is_traced_once_for_any_number_of_steps(execution):
    calls = []

    def loss(x):
        calls.append(x)
        return (x - 4) ** 2

    run = running(loss, execution)
    run.last()
    traced = len(calls)
    assert 0 < traced <= 4
    trace = join([run.advance(1), run.advance(7), run.advance(100), run.last()])
    assert len(calls) == traced and len(trace) == 109


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rows_are_the_same_however_many_steps_are_taken_at_a_time(execution, strategy):
    whole, parts = (steps(running(execution=execution, strategy=strategy), *sizes) for sizes in ((20,), (1, 2, 3, 14)))
    for part in ("steps", "x", "loss", "gradient"):
        np.testing.assert_array_equal(getattr(whole, part), getattr(parts, part))


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_looking_changes_nothing(execution):
    run = running(execution=execution)
    first, again = run.last(), run.last()
    assert (first.start, first.x, again.x) == (0, 0, 0)
    run.advance(3)
    assert run.last().x == run.last().x and run.last().start == 3


@pytest.mark.parametrize(
    "function",
    [lambda x: tf.constant((x.numpy() - 4) ** 2) + 0 * x, lambda x: x * x if x > 1 else -x],
    ids=["numpy", "if"],
)
def test_a_loss_that_cannot_be_traced_says_so_and_runs_in_eager(function):
    for execution in ("graph", "xla"):
        with pytest.raises(UserError, match=r"cannot be (traced|compiled by XLA); set execution=eager"):
            running(function, execution, x0=3.0).last()
    assert len(steps(running(function, "eager", x0=3.0), 1, 1)) == 3


def test_a_persistent_tape_does_not_make_memory_grow(monkeypatch):
    million = np.zeros(1_000_000, np.float32)

    def loss(x):
        return tf.reduce_sum(losses.intermediate("z", x - 4) ** 2)

    def grown() -> int:
        run = running(loss, persistent=True, intermediates=True, x0=million)
        taken = [run.advance(1) and memory() for _ in range(100)]
        # The allocator keeps what it needs for a few steps, so the first do not count.
        return taken[-1] - taken[20]

    assert grown() < 80e6
    # The same steps with their tapes kept hold z and more of each, at 4 MB apiece: this test can fail.
    original, kept = tf.GradientTape, []
    monkeypatch.setattr(tf, "GradientTape", lambda **keys: kept.append(original(**keys)) or kept[-1])
    assert grown() > 80 * 4e6


def memory() -> int:
    """Return this process's resident memory in bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_both_strategies_are_one_in_every_execution():
    for execution in EXECUTIONS:
        one, other = (steps(running(execution=execution, strategy=strategy), 20) for strategy in STRATEGIES)
        for part, (mine, its) in itertools.product(("x", "loss", "gradient"), [(one, other)]):
            np.testing.assert_array_equal(getattr(mine, part), getattr(its, part))


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_random_loss_draws_by_seed_and_step_alone(strategy, execution):
    def drawn(seed):
        return tf.cast(tf.random.stateless_uniform((), seed, maxval=1000, dtype=tf.int32), tf.float32)

    def noisy(x, *, seed):
        return x * drawn(seed)

    def gradients(seed):
        return steps(running(Loss(noisy, (), seed=seed), execution, strategy), 2, 3).gradient

    np.testing.assert_array_equal(gradients(7), [drawn((7, step)) for step in range(6)])
    assert not (gradients(8) == gradients(7)).any()
