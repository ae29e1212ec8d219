"""SciPy's optimizers, step by step: SciPy drives, TensorFlow evaluates, and each iterate is a row."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from scipy.optimize import OptimizeResult, OptimizeWarning, minimize

from runner import optimizers
from runner.errors import UserError, first_line, nearest
from runner.loop import EVALUATIONS, Ending
from runner.losses import Loss
from runner.strategies import Row, Step, second_order, without_optimizer
from runner.strategies.coroutine import Returned, Suspended

# SciPy's own limits of iterations are far below those of a long run, so only the runner's limit applies.
UNLIMITED = 2**31 - 1
RUNNERS = ("maxiter", "disp", "return_all")


class Method(NamedTuple):
    """A method's second derivative, if it needs one, and the name of its failure when it cannot continue."""

    second: str | None
    failed: str


ITERATE, GRADIENT, HESSIAN, PRODUCT = "iterate", "gradient", "hessian", "hessian_product"
LINE, REGION = "line_search_failed", "trust_region_failed"
# SciPy's methods that use a gradient and have no constraints.
METHODS = {
    "CG": Method(None, LINE),
    "BFGS": Method(None, LINE),
    "L-BFGS-B": Method(None, LINE),
    "Newton-CG": Method(PRODUCT, LINE),
    "trust-ncg": Method(PRODUCT, REGION),
    "trust-krylov": Method(PRODUCT, REGION),
    "trust-exact": Method(HESSIAN, REGION),
    "dogleg": Method(HESSIAN, REGION),
}
# The `status` of all these methods when one of their own limits is reached.
LIMITED = 1


@without_optimizer
def scipy(
    loss: Loss,
    optimizer: Any,
    x: tf.Variable,
    *,
    method: str,
    options: Mapping[str, Any] | None,
    tolerances: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None,
) -> Step:
    """Let `scipy.optimize.minimize(method=…, options=…)` take the steps: row k holds its k-th iterate.

    `tolerances`, by dtype and method, are further options, unless `options` sets them.

    SciPy computes in double precision, TensorFlow in x's dtype. In graph and xla, the evaluations are compiled and SciPy stays
    as it is. A row reuses the evaluations that SciPy has asked for; `evaluations/…` count the evaluations up to the row. A run
    ends where SciPy ends: `converged` if SciPy reports success, else `iteration_limit`, and `stopped_by` names the failure. A
    run ends as `diverged` at an iterate with a Hessian that is not finite, or if other numbers that are not finite prevent
    SciPy from continuing.

    Raises UserError if there is no such method, or if the method has no such option.
    """
    if method not in METHODS:
        raise UserError(
            f"strategy.method must be a method of SciPy's that uses gradients, got {method!r}; {nearest(method, METHODS)}"
        )
    options = {**(tolerances or {}).get(x.dtype.name, {}).get(method, {}), **(options or {})}
    check(method, options)

    run = Run(loss, optimizer, x, method, options)

    def compiled(decorator: Callable[[Any], Any]) -> Step:
        run.compile(decorator)
        return step

    step = Step(run.take, run.evaluate, run.restart, compiled, run.ended, run.close, variables=None)
    return step


def check(method: str, options: Mapping[str, Any]) -> None:
    """Raise UserError for options that a method does not accept; SciPy would only warn of them."""
    for key in options.keys() & set(RUNNERS):
        raise UserError(f"strategy.options.{key} is not SciPy's to say here; leave it out, and set max_iterations")
    second = {"hess": lambda _: np.eye(2)} if METHODS[method].second else {}
    with warnings.catch_warnings():
        warnings.simplefilter("error", OptimizeWarning)
        try:
            minimize(lambda x: (x @ x / 2, x), np.ones(2), jac=True, method=method, options={**options, "maxiter": 1}, **second)
        except Exception as error:
            raise UserError(
                f"strategy.options do not suit {method}: {first_line(error)}; see scipy.optimize.show_options"
            ) from error


def diverged(what: str, says: str) -> tuple[Ending, str, str]:
    """Return the ending `diverged`; `what` is not finite: "gradient" or "Hessian"."""
    return Ending.DIVERGED, f"nonfinite_{what.lower()}", says


class Run:
    """One minimisation by SciPy: its questions are answered up to its next iterate, which is computed only when needed."""

    def __init__(self, loss: Loss, optimizer: Any, x: tf.Variable, method: str, options: Mapping[str, Any]) -> None:
        self.optimizer, self.x, self.method = optimizer, x, method
        self.shape, self.options = x.numpy().shape, {**options, "maxiter": UNLIMITED}
        self.second = METHODS[method].second
        functions = {
            GRADIENT: second_order.value_and_gradient,
            HESSIAN: second_order.hessian,
            PRODUCT: second_order.product,
        }
        asked = (GRADIENT, self.second)
        self.evaluations = {name: partial(each, loss.function) for name, each in functions.items() if name in asked}
        self.driver: Suspended | None = None
        self.restart()

    def compile(self, decorator: Callable[[Any], Any]) -> None:
        """Decorate the evaluations, and call each once to compile it; these calls are not counted."""
        self.evaluations = {name: decorator(function) for name, function in self.evaluations.items()}
        x = tf.convert_to_tensor(self.x)
        for name, function in self.evaluations.items():
            function(*[x] * (2 if name == PRODUCT else 1))

    def restart(self) -> None:
        """Reset the minimisation, to start from the present x."""
        self.close()
        self.counts = Counter({name: 0 for name in self.evaluations})
        self.known: dict[bytes, tuple[tf.Tensor, tf.Tensor]] = {}
        self.row: Row | None = None
        self.ahead: np.ndarray | None = None
        self.unusable: dict[bytes, str] = {}
        self.end: tuple[Ending, str, str] | None = None

    def close(self) -> None:
        """End SciPy, if it waits for an answer."""
        if self.driver is not None:
            self.driver.close()
        self.driver = None

    def evaluate(self) -> Row:
        """Return the row at the present iterate, x."""
        if self.row is None:
            self.row = self.reached(self.x.numpy())
        return self.row

    def take(self) -> Row:
        """Return the row at x, and move x to the next iterate, if there is one."""
        row = self.evaluate()
        if optimizers.usable(*row[:3]) and self.ended() is None and self.ahead is not None:
            self.row, self.ahead = self.reached(self.ahead), None
            self.x.assign(self.row.x)
            self.optimizer.iterations.assign_add(1)
        return row

    def ended(self) -> tuple[Ending, str, str] | None:
        """Return why there is no next iterate, or None where there is one."""
        if self.end is None and self.ahead is None:
            self.evaluate()
            self.look_ahead()
        return self.end

    def look_ahead(self) -> None:
        """Let SciPy continue to its next iterate, or to its end."""
        assert self.row is not None
        here = self.row.x.numpy().tobytes()
        if self.driver is None:
            start = self.x.numpy().astype(np.float64).ravel()
            self.driver = Suspended(partial(self.drive, start))
        answer = None
        while self.ahead is None:
            try:
                # SciPy's result reports the same as its warnings.
                with warnings.catch_warnings(action="ignore"):
                    what, *at = self.driver.resume(answer)
            except Returned as returned:
                self.end = self.no_further(here) or self.ending(returned.value)
                return
            except (ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
                # Only errors of SciPy itself arrive here: `answer` raises the errors of a loss.
                if not self.unusable:
                    raise
                self.end = diverged(next(iter(self.unusable.values())), f"{self.method} says: {first_line(error)}")
                return
            if (end := self.no_further(here)) is not None:
                self.end = end
                self.close()
                return
            if what == ITERATE:
                self.ahead = at[0]
            else:
                answer = self.answer(what, *at)

    def no_further(self, here: bytes) -> tuple[Ending, str, str] | None:
        """Return the ending if a derivative that SciPy has asked for at this iterate is not finite, else None."""
        what = self.unusable.get(here)
        return None if what is None else diverged(what, f"{self.method} has no finite {what} here to go on by")

    def drive(self, start: np.ndarray, ask: Callable[[Any], Any]) -> OptimizeResult:
        """Run SciPy's `minimize`, which asks for all evaluations through `ask`, and return its result."""
        second: dict[str, Any] = {}
        if self.second == HESSIAN:
            second["hess"] = lambda x: ask((HESSIAN, x))
        if self.second == PRODUCT:
            second["hessp"] = lambda x, v: ask((PRODUCT, x, v))
        keys = {"jac": True, "callback": lambda xk: ask((ITERATE, xk)), **second}
        return minimize(lambda x: ask((GRADIENT, x)), start, method=self.method, options=self.options, **keys)

    def answer(self, what: str, *at: np.ndarray) -> Any:
        """Return the evaluation that SciPy asks for, in double precision, at a point and possibly along a vector."""
        if what == GRADIENT:
            value, gradient = self.first_order(at[0])
            loss, slopes = float(value), gradient.numpy().astype(np.float64).ravel()
            if not (np.isfinite(loss) and np.isfinite(slopes).all()):
                self.unusable[self.tensor(at[0]).numpy().tobytes()] = "gradient"
            # A comparison with NaN never holds: with NaN, SciPy would neither accept the point nor shorten its step.
            return np.inf if np.isnan(loss) else loss, slopes
        self.counts[what] += 1
        found = self.evaluations[what](*map(self.tensor, at)).numpy().astype(np.float64)
        found = found if what == HESSIAN else found.ravel()
        if not np.isfinite(found).all():
            self.unusable[self.tensor(at[0]).numpy().tobytes()] = "Hessian"
            # SciPy asks for the Hessian also at points that it then does not accept, so this is no reason to end.
            return np.zeros_like(found)
        return found

    def first_order(self, at: np.ndarray) -> tuple[tf.Tensor, tf.Tensor]:
        """Return loss and gradient at a point; values computed since the last iterate are reused."""
        x = self.tensor(at)
        key = x.numpy().tobytes()
        if key not in self.known:
            self.counts[GRADIENT] += 1
            self.known[key] = self.evaluations[GRADIENT](x)
        return self.known[key]

    def tensor(self, flat: np.ndarray) -> tf.Tensor:
        """Return SciPy's flat array as a tensor of x's shape and dtype."""
        return tf.constant(flat.reshape(self.shape), self.x.dtype)

    def reached(self, at: np.ndarray) -> Row:
        """Return the row of an iterate, with the counts of evaluations when SciPy reached it."""
        value, gradient = self.first_order(at)
        x = self.tensor(at)
        key = x.numpy().tobytes()
        self.known = {key: (value, gradient)}
        self.unusable = {each: why for each, why in self.unusable.items() if each == key}
        counts = {"loss": self.counts[GRADIENT], **self.counts}
        return Row(x, value, gradient, {EVALUATIONS + name: tf.constant(n, tf.int64) for name, n in counts.items()})

    def ending(self, result: OptimizeResult) -> tuple[Ending, str, str]:
        """Return the ending that corresponds to SciPy's result, with a more precise name and SciPy's sentence."""
        says = f"{self.method} says: {' '.join(str(result.message).split())}"
        if result.success:
            return Ending.CONVERGED, "scipy", says
        return Ending.ITERATION_LIMIT, "evaluation_limit" if result.status == LIMITED else METHODS[self.method].failed, says
