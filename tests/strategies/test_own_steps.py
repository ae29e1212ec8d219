"""Strategies that take their own steps: they count, restart and refuse as one, and each is what others take it for."""

from __future__ import annotations

import math
import threading
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from conftest import CONF, store, strategies
from omegaconf import OmegaConf
from scipy import optimize

import runner.losses
from runner.config import build
from runner.errors import Incompatible, UserError
from runner.loop import Ending
from runner.losses import Loss
from runner.optimizers import NoOptimizer
from runner.strategies import second_order
from runner.strategies.coroutine import Closed, Returned, Suspended
from runner.strategies.scipy_driver import METHODS
from runner.trace import Trace, join

OWN = strategies(without_optimizer=True)
EXECUTIONS = {path.stem: OmegaConf.load(path) for path in sorted((CONF / "execution").glob("*.yaml"))}
ARGUMENTS = {"ellipsoid": {"condition_number": 100.0}}
SQUARES = {
    name: Loss.of(partial(each, **ARGUMENTS.get(name, {})), 3 if each.known.dimension is None else None)
    for name in runner.losses.__all__
    if callable(each := getattr(runner.losses, name)) and getattr(getattr(each, "known", None), "residuals", None) is not None
}
ROSENBROCK = Loss.of(runner.losses.rosenbrock, 2)
ELLIPSOID = Loss.of(partial(runner.losses.ellipsoid, condition_number=1e4), 5)


def running(
    strategy: str, loss: Loss = ROSENBROCK, execution: str = "eager", x0: Any = None, dtype: Any = tf.float64, **keys: Any
):
    """Return an execution of a strategy, and what counts its steps."""
    x = tf.Variable(tf.constant(loss.start if x0 is None else x0, dtype))
    optimizer = NoOptimizer()
    step = build.strategy(OmegaConf.merge(OWN[strategy], keys), loss, optimizer, x)
    return build.execution(EXECUTIONS[execution], step), optimizer, x


def rows(run: Any, n: int) -> Trace:
    """Return n + 1 rows, or as many as there are."""
    found = [run.last()[:0]]
    while sum(map(len, found)) < n and run.ended() is None:
        found.append(run.advance(min(run.chunk, n - sum(map(len, found)))))
    trace = join([*found, run.last()])
    run.close()
    return trace


# What all of them promise.


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("strategy", OWN)
def test_each_step_is_counted_once_and_its_row_is_of_one_point(strategy, execution):
    run, optimizer, x = running(strategy, execution=execution)
    trace = rows(run, 12)
    assert int(optimizer.iterations) == 12 and list(trace.steps) == list(range(13))
    np.testing.assert_array_equal(trace.x[-1], x.numpy())
    # At the very points: SciPy's formula, and 1e-13 for another order of the same terms.
    np.testing.assert_allclose(trace.loss, [optimize.rosen(x) for x in trace.x], rtol=1e-13)
    np.testing.assert_allclose(trace.gradient, [optimize.rosen_der(x) for x in trace.x], rtol=1e-13, atol=1e-11)
    for name in ("loss", "gradient"):
        counts = trace.named[f"evaluations/{name}"]
        assert counts[0] == 1 and (np.diff(counts) >= 1).all()


@pytest.mark.parametrize("execution", ["eager", "graph"])
@pytest.mark.parametrize("strategy", OWN)
def test_a_program_that_is_used_again_starts_again(strategy, execution):
    run, optimizer, x = running(strategy, execution=execution)
    first = rows(run, 6)
    x.assign(ROSENBROCK.start)
    optimizer.iterations.assign(0)
    run.restart()
    again = rows(run, 6)
    for part in ("steps", "x", "loss", "gradient"):
        np.testing.assert_array_equal(getattr(first, part), getattr(again, part))
    assert all((again.named[name] == first.named[name]).all() for name in first.named)


@pytest.mark.parametrize("strategy", OWN)
def test_rows_are_the_same_however_many_steps_are_taken_at_a_time(strategy):
    run, _, _ = running(strategy, execution="graph")
    parts = join([*(run.advance(n) for n in (1, 2, 4)), run.last()])
    run.close()
    whole = rows(running(strategy, execution="graph")[0], 7)
    np.testing.assert_array_equal(parts.x, whole.x)
    for name in whole.named:
        np.testing.assert_array_equal(parts.named[name], whole.named[name])


@pytest.mark.parametrize("strategy", OWN)
def test_a_scalar_and_float32_will_do(strategy):
    trace = rows(running(strategy, Loss.of(runner.losses.quadratic), "graph", dtype=tf.float32)[0], 3)
    assert trace.x.dtype == np.float32 and trace.x[-1] == 4


@pytest.mark.parametrize("strategy", OWN)
def test_a_keras_optimizer_or_a_random_loss_is_refused(strategy):
    x = tf.Variable(tf.constant(ROSENBROCK.start))
    adam = build.optimizer(OmegaConf.load(CONF / "optimizer/adam.yaml"), x)
    with pytest.raises(
        Incompatible, match=f"strategy={strategy} takes its own steps and no optimizer, got Adam; .*optimizer=none"
    ):
        build.strategy(OWN[strategy], ROSENBROCK, adam, x)
    noisy = Loss(lambda x, *, seed: tf.reduce_sum(x * x), (2,), seed=3)
    with pytest.raises(Incompatible, match=f"strategy={strategy} needs a loss that is the same in each step"):
        build.strategy(OWN[strategy], noisy, NoOptimizer(), x)


@pytest.mark.parametrize("strategy", strategies(without_optimizer=False))
def test_no_optimizer_goes_with_a_strategy_that_needs_one(strategy):
    x = tf.Variable([1.0, 2.0])
    with pytest.raises(Incompatible, match=f"strategy={strategy} leaves the step to an optimizer"):
        build.strategy(strategies(without_optimizer=False)[strategy], ROSENBROCK, NoOptimizer(), x)


# Newton.


def newton_by_hand(x: np.ndarray, n: int) -> np.ndarray:
    """Return n + 1 iterates of Newton's method with backtracking on Rosenbrock's function, from SciPy's derivatives."""
    found = [x]
    for _ in range(n):
        gradient, h = optimize.rosen_der(x), optimize.rosen_hess(x)
        assert np.linalg.eigvalsh(h).min() > 0
        p, t = -np.linalg.solve(h, gradient), 1.0
        while optimize.rosen(x + t * p) > optimize.rosen(x) + 1e-4 * t * gradient @ p + 4 * 2.0**-52 * optimize.rosen(x):
            t /= 2
        found.append(x := x + t * p)
    return np.array(found)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_newton_takes_the_steps_of_its_formula_and_converges_quadratically(execution):
    trace = rows(running("newton", execution=execution)[0], 22)
    # Far from the minimum a rounding grows: 1e-16 by some factor a step.
    np.testing.assert_allclose(trace.x, newton_by_hand(ROSENBROCK.start, 22), rtol=1e-9)
    errors = np.linalg.norm(trace.x - 1, axis=1)
    near = (errors < 0.1) & (errors > 1e-7)
    ratios = errors[1:][near[:-1]] / errors[:-1][near[:-1]] ** 2
    # By Taylor's formula up to half the third derivative, 2400 along the steepest, over the least eigenvalue, 0.4.
    assert len(ratios) >= 3 and ratios.max() < 2400 / 2 / 0.4 and errors[-1] < 1e-15
    assert errors[1:][near[:-1]].max() < errors[near].max() / 2


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_newton_takes_one_step_on_a_quadratic(execution):
    trace = rows(running("newton", ELLIPSOID, execution)[0], 2)
    # A Hessian of condition 1e4, in double precision.
    np.testing.assert_allclose(trace.x[1], 0, atol=1e-11)
    assert trace.named["evaluations/loss"].tolist() == [1, 2, 3]
    assert trace.named["evaluations/hessian"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("execution", ["eager", "graph"])
@pytest.mark.parametrize("x0", [[0.1, 0.1], [3.0, -2.0], [0.0, 0.0]])
def test_newton_leaves_a_maximum_and_a_saddle_behind(execution, x0):
    # Indefinite between the minima, and flat at the top, where the gradient vanishes and x stays.
    def humps(x: tf.Tensor) -> tf.Tensor:
        return tf.square(tf.square(x[..., 0]) - 1) + tf.square(tf.square(x[..., 1]) - 4)

    trace = rows(running("newton", Loss(humps, (2,)), execution, x0)[0], 30)
    assert (np.diff(trace.loss) <= 1e-15).all()
    np.testing.assert_allclose(np.abs(trace.x[-1]), [1, 2] if any(x0) else [0, 0], atol=1e-12)


@tf.custom_gradient
def lying(x):
    """A loss whose gradient points the wrong way: what it calls down is up."""
    return tf.reduce_sum(x * x), lambda upstream: -2 * upstream * x


def test_newton_stays_where_nothing_is_lower_than_here():
    trace = rows(running("newton", Loss(lying, (2,)), x0=[1.0, 2.0], max_halvings=5)[0], 2)
    np.testing.assert_array_equal(trace.x, [[1.0, 2.0]] * 3)
    assert trace.named["evaluations/loss"].tolist() == [1, 7, 13]


# Gauss and Newton's, beside MINPACK.

VALLEY = "helical_valley"


@cache
def minpack(name: str) -> tuple[np.ndarray, int]:
    """Return the points at which LMDER computes the Jacobian, from the standard start, and how often it computed residuals."""
    loss, points = SQUARES[name], []

    def r(x: np.ndarray) -> np.ndarray:
        return loss.residuals(tf.constant(x.reshape(loss.shape), tf.float64)).numpy()

    def jacobian(x: np.ndarray) -> np.ndarray:
        points.append(x.copy())
        point = tf.constant(x.reshape(loss.shape), tf.float64)
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(point)
            each = tf.unstack(loss.residuals(point))
        return np.array([np.ravel(tape.gradient(one, point, unconnected_gradients="zero")) for one in each])

    # As MINPACK's LMDER1 calls it.
    tolerance = float(np.sqrt(np.finfo(float).eps))
    keys = {"ftol": tolerance, "xtol": tolerance, "gtol": 0.0, "maxfev": 100 * (loss.start.size + 1), "factor": 100}
    found = optimize.leastsq(r, np.ravel(loss.start), Dfun=jacobian, full_output=True, **keys)
    # The first call is SciPy's, to see its shape.
    return np.array(points[1:]), found[2]["nfev"]


@pytest.mark.parametrize("name", SQUARES)
def test_residuals_are_what_the_loss_squares(name):
    loss = SQUARES[name]
    x = tf.constant(np.random.default_rng(0).uniform(*loss.domain, size=(3, 4, *loss.shape)))
    values, squares = loss(x), tf.reduce_sum(tf.square(loss.residuals(x)), axis=-1)
    np.testing.assert_allclose(squares, values, rtol=1e-12)


@pytest.mark.parametrize(("name", "execution"), [*((name, "graph") for name in SQUARES), (VALLEY, "eager"), (VALLEY, "xla")])
def test_gauss_newton_goes_where_minpack_goes(name, execution):
    points, _ = minpack(name)
    n = min(len(points), 40) - 1
    trace = rows(running("gauss_newton", SQUARES[name], execution)[0], n)
    # 1e-9: Wood's valley magnifies roundings over forty steps; most agree to 1e-14.
    np.testing.assert_allclose(trace.x.reshape(n + 1, -1), points[: n + 1], rtol=1e-9, atol=1e-9)


# What MINPACK's own test of LMDER prints for its problems 4 and 5, tried from their standard starts (`lmddrv`, in the Fortran
# output that comes with github.com/devernay/cminpack, examples/ref/lmddrv.fortran.ref).
PUBLISHED = {"rosenbrock": (21, 16), "helical_valley": (11, 8)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_gauss_newton_counts_what_minpack_printed(name):
    residuals, jacobians = PUBLISHED[name]
    loss = ROSENBROCK if name == "rosenbrock" else SQUARES[name]
    trace = rows(running("gauss_newton", loss, "graph")[0], jacobians)
    counts = trace.named["evaluations/loss"]
    # Its last Jacobian is row 15's, or 7's; helical_valley takes one more trial step there, which ends it.
    assert trace.named["evaluations/jacobian"][jacobians - 1] == jacobians
    assert counts[jacobians - 1] == residuals if name == "rosenbrock" else counts[jacobians] == residuals
    assert trace.loss[jacobians] < 1e-30


def test_gauss_newton_refuses_a_loss_without_residuals_and_one_that_names_others():
    with pytest.raises(Incompatible, match="names its residuals, which this one does not; set strategy=newton"):
        running("gauss_newton", Loss.of(runner.losses.ackley, 2))
    wrong = Loss(lambda x: tf.reduce_sum(x * x), (2,), start=np.ones(2), residuals=lambda x: 2 * x)
    with pytest.raises(UserError, match="the sum of their squares; got shape"):
        running("gauss_newton", wrong)


# SciPy, driven.


def by_scipy_alone(method: str) -> tuple[np.ndarray, Any, int]:
    """Return the iterates and the result of SciPy on its own Rosenbrock function, and at how many points it asked for that."""
    found, asked = [ROSENBROCK.start], set()
    second = {"hess": optimize.rosen_hess} if METHODS[method].second == "hessian" else {}
    second |= {"hessp": optimize.rosen_hess_prod} if METHODS[method].second == "hessian_product" else {}

    def both(x: np.ndarray) -> tuple[float, np.ndarray]:
        asked.add(x.tobytes())
        return optimize.rosen(x), optimize.rosen_der(x)

    tolerances = OWN["scipy"].tolerances.float64.get(method, {})
    keys = {"jac": True, "callback": lambda xk: found.append(xk.copy()), "options": dict(tolerances), **second}
    result = optimize.minimize(both, ROSENBROCK.start, method=method, **keys)
    assert result.nfev - 1 <= len(asked) <= result.nfev
    return np.array(found), result, len(asked)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("method", [each for each in METHODS if each != "dogleg"])
def test_scipys_iterates_are_those_that_it_has_alone(method, execution):
    alone, result, asked = by_scipy_alone(method)
    run, optimizer, _ = running("scipy", execution=execution, method=method)
    trace = rows(run, 1000)
    assert int(optimizer.iterations) == result.nit == len(trace) - 1
    # TensorFlow's derivatives differ from SciPy's by a few roundings, 1e-16, which the way to the minimum magnifies.
    np.testing.assert_allclose(trace.x, alone, rtol=1e-6)
    assert trace.named["evaluations/gradient"][-1] == asked
    assert run.ended()[:2] == ("converged", "scipy") and result.message.split(":")[0] in run.ended()[2]


def test_the_dogleg_method_ends_where_the_hessian_is_not_definite():
    run, _, _ = running("scipy", Loss.of(runner.losses.himmelblau), x0=[0.1, 0.1], method="dogleg")
    rows(run, 5)
    assert run.ended()[:2] == ("iteration_limit", "trust_region_failed") and "non-psd" in run.ended()[2]


@pytest.mark.parametrize(
    ("method", "options", "loss", "by"),
    [
        ("L-BFGS-B", {"maxfun": 5}, ROSENBROCK.function, "evaluation_limit"),
        ("BFGS", {}, lying, "line_search_failed"),
        ("Newton-CG", {}, lying, "line_search_failed"),
    ],
)
def test_where_scipy_gives_up_the_run_ends_with_its_reason(method, options, loss, by):
    run, _, _ = running("scipy", Loss(loss, (2,)), x0=[1.0, 2.0], method=method, options=options)
    rows(run, 500)
    assert run.ended()[:2] == ("iteration_limit", by) and run.ended()[2].startswith(f"{method} says: ")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"method": "bfgs"}, "got 'bfgs'; did you mean 'BFGS'|got 'bfgs'; known: BFGS"),
        ({"method": "Nelder-Mead"}, "must be a method of SciPy's that uses gradients"),
        ({"options": {"gtl": 1e-3}}, "do not suit L-BFGS-B: OptimizeWarning: Unknown solver options: gtl"),
        ({"options": {"maxiter": 3}}, "strategy.options.maxiter .* set max_iterations"),
    ],
)
def test_what_scipy_does_not_know_is_told_before_the_first_step(keys, words):
    with pytest.raises(UserError, match=words):
        running("scipy", **keys)


def test_no_thread_is_left_when_a_run_ends_early():
    before = threading.active_count()
    run, _, _ = running("scipy", method="BFGS")
    run.advance(1)
    run.advance(3)
    assert threading.active_count() == before + 1
    run.close()
    assert threading.active_count() == before

    def fails(x: tf.Tensor) -> tf.Tensor:
        if float(x[0]) > 0:
            raise ZeroDivisionError("beyond 0")
        return tf.reduce_sum(tf.square(x - 1))

    run, _, _ = running("scipy", Loss(fails, (2,)), x0=[-1.0, -1.0])
    with pytest.raises(ZeroDivisionError, match="beyond 0"):
        rows(run, 10)
    run.close()
    assert threading.active_count() == before


def test_a_suspended_function_hands_over_returns_raises_and_closes():
    def function(ask):
        total = ask("one") + ask("two")
        return ask("raise") or total

    turned = Suspended(function)
    assert (turned.resume(), turned.resume(1), turned.resume(2)) == ("one", "two", "raise")
    with pytest.raises(Returned) as end:
        turned.resume(0)
    assert end.value.value == 3 and not turned.thread.is_alive()
    with pytest.raises(Closed):
        turned.resume()
    Suspended(function).close()

    def divides(ask):
        return 1 / ask("divisor")

    turned = Suspended(divides)
    turned.resume()
    with pytest.raises(ZeroDivisionError):
        turned.resume(0)


# From the command line.

# Of each family one that is hard for its kind; from its standard start, which none of the others' local minima lies near.
REACHED = ["beale", "booth", "branin", "dixon_price", "ellipsoid", "helical_valley", "himmelblau", "matyas", "powell_singular"]
REACHED += ["quadratic", "rosenbrock", "six_hump_camel", "sphere", "styblinski_tang", "wood", "zakharov"]


@pytest.mark.long
@pytest.mark.parametrize("execution", ["eager", "xla"])
def test_l_bfgs_b_reaches_the_known_minima(cli, runs, execution):
    words = ["-m", "strategy=scipy", f"loss={','.join(REACHED)}", f"execution={execution}", "dtype=float64"]
    ended = cli(*words, "max_iterations=500", "strategy.options={ftol:1e-15,gtol:1e-8}")
    assert ended.code == 0 and ended.err == "" and len(runs()) == len(REACHED)
    for run in runs():
        assert run.data.metrics["system/loss_above_minimum"] < 1e-7, run.data.tags["overrides"]
        assert run.data.tags["ending"] == "converged" and run.data.tags["stopped_by"] == "scipy"
        assert run.data.metrics["system/gradient_evaluations"] == run.data.metrics["evaluations/gradient"]
        assert run.data.metrics["system/gradient_evaluations"] > run.data.metrics["system/iterations"]


def test_gauss_newton_fits_a_linear_model_in_one_step(cli, runs):
    words = ["-m", "strategy=gauss_newton", "loss=linear_regression,ridge", "dtype=float64", "execution=graph"]
    assert cli(*words, "max_iterations=1").code == 0
    # The minimum that is known comes from the normal equations.
    assert [run.data.metrics["system/loss_above_minimum"] < 1e-14 for run in runs()] == [True, True]


@pytest.mark.parametrize("launcher", ["basic", "fused"])
def test_what_cannot_go_together_is_skipped_in_a_sweep(cli, runs, tmp_path, launcher):
    words = ["-m", "strategy=tape,newton,scipy", "optimizer=sgd,none", "max_iterations=3", f"hydra/launcher={launcher}"]
    ended = cli(*words)
    assert ended.code == 0 and ended.err == "" and "3 skipped" in ended.out
    assert "1 skipped: strategy=tape leaves the step to an optimizer" in ended.out
    assert "1 skipped: strategy=scipy takes its own steps and no optimizer, got SGD" in ended.out
    ran = sorted((run.data.tags["strategy"], run.data.tags["optimizer"]) for run in runs())
    assert ran == [("newton", "none"), ("scipy", "none"), ("tape", "sgd")]
    client = store(tmp_path)
    (parent,) = client.search_runs([each.experiment_id for each in client.search_experiments()], "tags.sweep = 'parent'")
    assert parent.info.status == "FINISHED" and parent.data.metrics["system/skipped"] == 3
    table = OmegaConf.create(Path(client.download_artifacts(parent.info.run_id, "jobs.json")).read_text())
    reasons = [row[table.columns.index("skipped")] for row in table.data]
    assert sum(reason is not None for reason in reasons) == 3
    # Of a rate, too; and a plan tells it.
    planned = cli("-m", "strategy=tape,newton", "optimizer.learning_rate=0.1,0.2", "sweep.plan=true")
    assert planned.code == 0 and "2 skipped: optimizer.learning_rate means nothing" in planned.out


def test_own_steps_are_taken_one_by_one_beside_fused_jobs(cli, runs):
    words = ["-m", "loss=booth", "guess=uniform", "seed=1,2", "max_iterations=3", "hydra/launcher=fused"]
    ended = cli(*words, "strategy=newton,scipy")
    assert ended.code == 0 and "4 jobs one by one: a strategy that takes its own steps takes them for one x" in ended.out
    assert len(runs()) == 4


def test_stopping_rules_limits_and_jobs_of_one_process_end_scipy(cli, runs):
    words = ["-m", "strategy=scipy", "loss=rosenbrock", "dtype=float64", "strategy.method=BFGS"]
    ended = cli(
        *words, "guess=point", "guess.x=[-1.2,1],[2,2]", "max_iterations=3,100", "stopping=target", "stopping.target.loss=1e-3"
    )
    assert ended.code == 0 and not [each for each in threading.enumerate() if each.name.endswith("(run)")]
    endings = [(run.data.tags["ending"], run.data.tags.get("stopped_by")) for run in runs()]
    assert endings == [("iteration_limit", None), ("converged", "target")] * 2
    first, _, second, _ = (run.data.metrics["system/last_loss"] for run in runs())
    for start, loss in (([-1.2, 1.0], first), ([2.0, 2.0], second)):
        alone = optimize.minimize(optimize.rosen, start, jac=optimize.rosen_der, method="BFGS", options={"maxiter": 3})
        assert loss == pytest.approx(alone.fun, rel=1e-9)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_hessian_of_more_rows_than_are_computed_at_once_is_whole(jit_compile):
    n = 2 * second_order.ROWS + 44
    x = np.random.default_rng(0).normal(size=n)
    function = lambda x: runner.losses.rosenbrock(x) + tf.square(tf.reduce_sum(x))  # noqa: E731
    compiled = tf.function(lambda x: second_order.hessian(function, x), jit_compile=jit_compile, autograph=False)
    np.testing.assert_allclose(compiled(tf.constant(x)), optimize.rosen_hess(x) + 2, rtol=1e-12)


# What is not finite.


@tf.custom_gradient
def bent(x: tf.Tensor) -> Any:
    """Return ‖x‖², whose second derivative is NaN everywhere."""
    slope = tf.custom_gradient(lambda x: (2 * x, lambda upstream: upstream * math.nan))
    return tf.reduce_sum(x * x), lambda upstream: upstream * slope(x)


@pytest.mark.parametrize("execution", ["eager", "graph"])
@pytest.mark.parametrize("method", [name for name, each in METHODS.items() if each.second])
def test_a_hessian_that_is_not_finite_ends_scipy_as_diverged(method, execution):
    run, _, x = running("scipy", Loss(bent, (2,)), execution, [1.0, 2.0], method=method)
    trace = rows(run, 5)
    ending, by, says = run.ended()
    assert (ending, by, len(trace)) == (Ending.DIVERGED, "nonfinite_hessian", 1) and method in says
    np.testing.assert_array_equal(x.numpy(), [1.0, 2.0])


def hole(x: tf.Tensor) -> tf.Tensor:
    """Return Rosenbrock's function left of x₁ = 1.2, and NaN right of it."""
    return tf.where(x[0] < 1.2, runner.losses.rosenbrock(x), math.nan)


@pytest.mark.parametrize("method", METHODS)
def test_scipy_raises_nothing_where_a_trial_point_is_not_finite(method):
    trace = rows(running("scipy", Loss(hole, (2,)), "graph", [-1.2, 1.0], method=method)[0], 60)
    assert trace.finite.all() and trace.loss[-1] < trace.loss[0]


@pytest.mark.parametrize("execution", ["eager", "graph"])
def test_newton_steps_by_the_gradient_where_the_hessian_is_not_finite(execution):
    trace = rows(running("newton", Loss(bent, (2,)), execution, [1.0, 2.0])[0], 3)
    assert trace.finite.all() and trace.loss[-1] < 1e-20


@pytest.mark.parametrize("strategy", ["newton", "gauss_newton"])
def test_a_run_ends_by_itself_where_x_stands_still(cli, runs, strategy):
    words = [f"strategy={strategy}", "loss=himmelblau", "dtype=float64", "max_iterations=1000", "execution=graph"]
    ended = cli(*words)
    (run,) = runs()
    assert ended.code == 0 and "no step that the strategy tries from here lowers the loss" in ended.out
    assert (run.data.tags["ending"], run.data.tags["stopped_by"]) == ("iteration_limit", "no_decrease")
    assert run.data.metrics["system/loss_above_minimum"] < 1e-25 and run.data.metrics["system/iterations"] < 30
