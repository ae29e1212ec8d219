"""The optima of losses of data, in double precision: by Newton's method for convex losses, in closed form for factorization.

The formulas are written in NumPy, separately from the losses: so the reference of a run does not come from the code that it
minimises.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from runner.losses.data import Data

# A function of a point, [p], that returns value, gradient [p] and Hessian [p, p].
Model = Callable[[np.ndarray], tuple[float, np.ndarray, np.ndarray]]
# A function of scores and targets that returns each row's loss and its first two derivatives by the score, [n] each.
Slopes = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
# The largest dimension: beyond it, the Hessian takes longer than a user would wait for the minimum.
MOST = 2000
# The largest number of steps, and of halvings of a step; the length, relative to x, below which a step counts as converged; and
# the length that rounding may leave if the Hessian is ill-conditioned.
ITERATIONS, HALVES, SHORT, ROUNDED = 100, 30, 1e-9, 1e-6


class Optimum(NamedTuple):
    """The minimisers, [1, p], if there is only one, and the minimum; None if not known, or if there is none."""

    minimisers: np.ndarray | None
    minimum: float | None


UNKNOWN = Optimum(None, None)


class Penalty(NamedTuple):
    """The penalty of each weight w: l2/2 · w² + l1 · (√(w² + smoothing²) - smoothing)."""

    l2: float = 0.0
    l1: float = 0.0
    smoothing: float = 1.0

    def slopes(self, w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the penalty of each weight and its first two derivatives."""
        root = np.sqrt(w**2 + self.smoothing**2)
        value = self.l2 / 2 * w**2 + self.l1 * (root - self.smoothing)
        return value, self.l2 * w + self.l1 * w / root, self.l2 + self.l1 * self.smoothing**2 / root**3


def squares(scores: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the values and the first two derivatives of (score - y)² / 2."""
    return (scores - y) ** 2 / 2, scores - y, np.ones_like(y)


def logistic(scores: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the values and the first two derivatives of log(1 + exp score) - y score."""
    p = np.exp(-np.logaddexp(0, -scores))
    return np.logaddexp(0, scores) - y * scores, p - y, p * (1 - p)


def squared_hinge(scores: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the values and the first two derivatives of max(0, 1 - (2y - 1) score)², 0 where the second is not defined."""
    sign = 2 * y - 1
    short = np.maximum(0, 1 - sign * scores)
    return short**2, -2 * sign * short, 2.0 * (short > 0)


def poisson(scores: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the values and the first two derivatives of exp score - y score."""
    rate = np.exp(scores)
    return rate - y * scores, rate - y, rate


# BLAS's threads wait for each other by spinning: on two busy cores, 0.3 s of work took 9 s.
@cache
@threadpool_limits.wrap(limits=1)
def linear(data: Data, kind: str, slopes: Slopes, penalty: Penalty) -> Optimum:
    """Return the optimum of a linear model: of the mean over the rows plus the penalty of all weights but the intercept."""
    features, y = data.split(kind)
    a = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    if a.shape[1] > MOST:
        return UNKNOWN

    def model(x: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        value, first, second = slopes(a @ x, y)
        of_penalty = [np.append(each, 0.0) for each in penalty.slopes(x[:-1])]
        gradient, hessian = a.T @ first / len(a) + of_penalty[1], (a.T * second) @ a / len(a)
        return float(value.mean() + of_penalty[0].sum()), gradient, hessian + np.diag(of_penalty[2])

    x0 = np.zeros(a.shape[1])
    # The start of scikit-learn's PoissonRegressor, from which Newton's first step does not overshoot.
    x0[-1] = np.log(y.mean()) if slopes is poisson and y.mean() > 0 else 0.0
    return newton(model, x0)


@cache
@threadpool_limits.wrap(limits=1)
def softmax(data: Data, l2: float) -> Optimum:
    """Return the minimum of softmax regression, without minimisers: one number added to all intercepts gives another one."""
    features, y = data.split("classes")
    n, k = len(features), data.classes
    a = np.concatenate([features, np.ones((n, 1))], axis=1)
    p = a.shape[1]
    if p * k > MOST:
        return UNKNOWN
    curvature = np.repeat(np.append(np.full(p - 1, l2), 0.0), k)
    # Curvature along the directions that add one number to a feature's weights for all classes: the gradient has no part along
    # them, so any positive curvature serves.
    flat = np.kron(np.eye(p), np.ones((k, k)))

    def model(x: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        scores = a @ x.reshape(p, k)
        logs = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
        q = np.exp(logs)
        both = (a[:, :, None] * q[:, None, :]).reshape(n, p * k)
        hessian = -(both.T @ both).reshape(p, k, p, k) / n
        for i in range(k):
            hessian[:, i, :, i] += (a.T * q[:, i]) @ a / n
        value = -logs[np.arange(n), y].mean() + (curvature * x**2).sum() / 2
        gradient = (a.T @ (q - np.eye(k)[y]) / n).ravel() + curvature * x
        return float(value), gradient, hessian.reshape(p * k, p * k) + np.diag(curvature) + flat

    return Optimum(None, newton(model, np.zeros(p * k)).minimum)


def newton(model: Model, x: np.ndarray) -> Optimum:
    """Return the optimum by Newton's method, halving steps until the value falls; UNKNOWN if the method does not converge.

    The method has converged if the next step is very short. Without a penalty, classes that a plane separates have no minimum:
    each step is as long as the one before.
    """
    value, gradient, hessian = model(x)
    for _ in range(ITERATIONS):
        # The small multiple of the identity makes flat directions, in which the gradient is 0, harmless.
        step = np.linalg.solve(hessian + 1e-13 * np.trace(hessian) / len(x) * np.eye(len(x)), gradient)
        length = np.linalg.norm(step) / max(1.0, float(np.linalg.norm(x)))
        sizes = 0.5 ** np.arange(HALVES if length > SHORT else 0)
        found = next(((x - size * step, new) for size in sizes if (new := model(x - size * step))[0] <= value), None)
        if found is None:
            # The value may stop falling because of rounding while the gradient still falls: the full step may be better.
            x = min((x, x - step), key=lambda each: np.linalg.norm(model(each)[1]))
            curvatures = np.linalg.eigvalsh(hessian)
            alone = x[None] if curvatures[0] > 1e-10 * curvatures[-1] else None
            return Optimum(alone, model(x)[0]) if length <= ROUNDED else UNKNOWN
        x, (value, gradient, hessian) = found
    return UNKNOWN


@cache
def factors(data: Data, rank: int, l2: float) -> Optimum:
    """Return the minimum of matrix factorization, from the singular values; any rotation of the factors gives the same minimum.

    Each of the first `rank` singular values s that exceeds l2 contributes l2 s - l2²/2. Every other one contributes s²/2. The
    minimum is their sum over the number of rows. Source: Eckart and Young (1936), doi:10.1007/BF02288367; with l2, Mazumder,
    Hastie, Tibshirani (2010), JMLR 11:2287.
    """
    values = np.linalg.svd(data.features, compute_uv=False)
    kept = (np.arange(len(values)) < rank) & (values > l2)
    return Optimum(None, float(np.where(kept, l2 * values - l2**2 / 2, values**2 / 2).sum() / len(data.features)))
