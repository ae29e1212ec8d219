"""Where convex losses of data have their minimum, by Newton's method in double precision on formulas of their own.

The formulas are NumPy's, apart from the losses: what a run is measured against does not come from what it minimises.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from runner.losses.data import Data

# Value, gradient [p] and Hessian [p, p] at a point, [p].
Model = Callable[[np.ndarray], tuple[float, np.ndarray, np.ndarray]]
# Of each row's loss, by its score: the loss and its first two derivatives, [n] each; the arguments are scores and targets.
Slopes = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
# Beyond these the Hessian takes longer than a user would wait for the minimum to be known.
MOST = 2000
# Steps at the most, and how often one is halved; the length of one, relative to x, that is next to nothing; and that which
# rounding may leave where the Hessian is ill-conditioned.
ITERATIONS, HALVES, SHORT, ROUNDED = 100, 30, 1e-9, 1e-6


class Optimum(NamedTuple):
    """The minimisers, [1, p], where there is only one, and the minimum; None where it is not known, or there is none."""

    minimisers: np.ndarray | None
    minimum: float | None


UNKNOWN = Optimum(None, None)


class Penalty(NamedTuple):
    """The penalty of each weight w: l2/2 · w² + l1 · (√(w² + smoothing²) - smoothing)."""

    l2: float = 0.0
    l1: float = 0.0
    smoothing: float = 1.0

    def slopes(self, w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return it and its first two derivatives."""
        root = np.sqrt(w**2 + self.smoothing**2)
        value = self.l2 / 2 * w**2 + self.l1 * (root - self.smoothing)
        return value, self.l2 * w + self.l1 * w / root, self.l2 + self.l1 * self.smoothing**2 / root**3


def squares(scores: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return those of (score - y)² / 2."""
    return (scores - y) ** 2 / 2, scores - y, np.ones_like(y)


def logistic(scores: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return those of log(1 + exp score) - y score."""
    p = np.exp(-np.logaddexp(0, -scores))
    return np.logaddexp(0, scores) - y * scores, p - y, p * (1 - p)


def squared_hinge(scores: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return those of max(0, 1 - (2y - 1) score)², the second one where it is defined."""
    sign = 2 * y - 1
    short = np.maximum(0, 1 - sign * scores)
    return short**2, -2 * sign * short, 2.0 * (short > 0)


def poisson(scores: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return those of exp score - y score."""
    rate = np.exp(scores)
    return rate - y * scores, rate - y, rate


# BLAS's threads wait for each other by spinning: on two busy cores, 0.3 s of work took 9.
@cache
@threadpool_limits.wrap(limits=1)
def linear(data: Data, kind: str, slopes: Slopes, penalty: Penalty) -> Optimum:
    """Return the optimum of a linear model: of the mean over the rows, and the penalty of all but the intercept."""
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
    # As scikit-learn's, from which Newton's first step does not overshoot.
    x0[-1] = np.log(y.mean()) if slopes is poisson and y.mean() > 0 else 0.0
    return newton(model, x0)


@cache
@threadpool_limits.wrap(limits=1)
def softmax(data: Data, l2: float) -> Optimum:
    """Return the minimum of softmax regression; one number added to all intercepts changes nothing, so minimisers are many."""
    features, y = data.split("classes")
    n, k = len(features), data.classes
    a = np.concatenate([features, np.ones((n, 1))], axis=1)
    p = a.shape[1]
    if p * k > MOST:
        return UNKNOWN
    curvature = np.repeat(np.append(np.full(p - 1, l2), 0.0), k)
    # Of what adds one number to a feature's weights for all classes: the gradient has no such part, so any number does.
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
    """Return where Newton's method ends, halving its steps until the value falls; unknown where it does not converge.

    It has converged where its next step is next to nothing: classes that a plane separates have no minimum without a penalty,
    and each step goes on as far as the one before.
    """
    value, gradient, hessian = model(x)
    for _ in range(ITERATIONS):
        # So little that a flat direction, in which the gradient is 0, does no harm.
        step = np.linalg.solve(hessian + 1e-13 * np.trace(hessian) / len(x) * np.eye(len(x)), gradient)
        length = np.linalg.norm(step) / max(1.0, float(np.linalg.norm(x)))
        sizes = 0.5 ** np.arange(HALVES if length > SHORT else 0)
        found = next(((x - size * step, new) for size in sizes if (new := model(x - size * step))[0] <= value), None)
        if found is None:
            # Or the value no longer falls for its rounding, while the gradient still does.
            x = min((x, x - step), key=lambda each: np.linalg.norm(model(each)[1]))
            curvatures = np.linalg.eigvalsh(hessian)
            alone = x[None] if curvatures[0] > 1e-10 * curvatures[-1] else None
            return Optimum(alone, model(x)[0]) if length <= ROUNDED else UNKNOWN
        x, (value, gradient, hessian) = found
    return UNKNOWN


@cache
def factors(data: Data, rank: int, l2: float) -> Optimum:
    """Return the minimum of matrix factorization: the singular values decide it, and any rotation of the factors has it.

    Each of the first `rank` singular values s is kept but for l2, where it is larger: l2 s - l2²/2 remains, else s²/2, as of
    all the others. Source: Eckart and Young (1936), doi:10.1007/BF02288367; with l2, Mazumder, Hastie, Tibshirani (2010), JMLR
    11:2287.
    """
    values = np.linalg.svd(data.features, compute_uv=False)
    kept = (np.arange(len(values)) < rank) & (values > l2)
    return Optimum(None, float(np.where(kept, l2 * values - l2**2 / 2, values**2 / 2).sum() / len(data.features)))
