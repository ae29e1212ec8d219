"""Linear models fitted to data, all convex: x holds the weight of each feature, and the intercept last.

Each loss is the mean of the rows' losses, plus a penalty of the weights without the intercept. So the relative weight of the
penalty does not depend on the number of rows, or on the mini-batch. In the formulas s = wᵀ features + b is a row's score, y its
target, and a mean is over rows. Every function except softmax_regression takes x[..., d + 1]; all return [...] in x's dtype.
The domain [-1, 1] and the start are this package's convention. runner.losses.optima computes minima and minimisers.

`data` is a data set of runner.losses.data, `batch_size` the number of rows of a step's mini-batch (None: all rows), and `seed`
the seed by which the mini-batch is drawn.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from runner.losses import optima, sums
from runner.losses.base import term
from runner.losses.data import Data
from runner.losses.optima import Optimum, Penalty
from runner.losses.supervised import accuracy, cross_entropy, deviation, fitted, nonnegative, on_held_out


def scores(x: tf.Tensor, features: tf.Tensor) -> tf.Tensor:
    """Return wᵀ features + b of each row; x[..., d + 1], features[n, d] -> [..., n]."""
    return tf.tensordot(x[..., :-1], features, [[-1], [-1]]) + x[..., -1:]


def dimension(data: Data, **_: Any) -> int:
    """Return the dimension of x: the number of weights and the intercept."""
    return data.features.shape[1] + 1


def mean(losses: tf.Tensor) -> tf.Tensor:
    """Return the term `data`: the mean of the losses over the rows."""
    return term("data", sums.mean(losses))


def ridge_penalty(x: tf.Tensor, l2: float) -> tf.Tensor:
    """Return l2/2 ‖w‖²."""
    return term("penalty", l2 / 2 * sums.total(tf.square(x[..., :-1])))


def error_of_numbers(data: Data, kind: str, **_: Any) -> dict[str, Any]:
    """Return the measure `held_out_error`: the root mean square of s - y, in standard deviations of the targets."""
    return on_held_out("error", kind, data, lambda x, rows: deviation(scores(x, rows.features), rows.targets))


def accuracy_of_signs(data: Data, kind: str, **_: Any) -> dict[str, Any]:
    """Return the measure `held_out_accuracy`: the share of rows with s > 0 if y = 1, or s ≤ 0 if y = 0."""

    def worth(x: tf.Tensor, rows: Any) -> tf.Tensor:
        right = (scores(x, rows.features) > 0) == (rows.targets > 0.5)
        return sums.mean(tf.cast(right, x.dtype))

    return on_held_out("accuracy", kind, data, worth)


def deviance_of_counts(data: Data, kind: str, **_: Any) -> dict[str, Any]:
    """Return the measure `held_out_error`: the mean Poisson deviance 2 (y log(y / exp s) - y + exp s)."""

    def worth(x: tf.Tensor, rows: Any) -> tf.Tensor:
        s, y = scores(x, rows.features), rows.targets
        return 2 * sums.mean(tf.math.xlogy(y, y) - y * s - y + tf.exp(s))

    return on_held_out("error", kind, data, worth)


def residuals(x: tf.Tensor, *, data: Data) -> tf.Tensor:
    """Return (s - y) / √2n; the sum of their squares is the loss of linear_regression."""
    rows = data.rows("numbers", x.dtype)
    return (scores(x, rows.features) - rows.targets) / math.sqrt(2 * len(data.features))


def penalised(slopes: optima.Slopes) -> Any:
    """Return a function that computes the optimum of a model with the penalty `l2`, and raises UserError if `l2` is invalid."""

    def optimum(data: Data, kind: str, l2: float = 0.0, **_: Any) -> Optimum:
        nonnegative("l2", l2)
        return optima.linear(data, kind, slopes, Penalty(l2))

    return optimum


@fitted(
    "numbers",
    dimension=dimension,
    optimum=penalised(optima.squares),
    held_out=error_of_numbers,
    residuals=residuals,
)
def linear_regression(x: tf.Tensor, *, data: Data, batch_size: int | None, seed: Any) -> tf.Tensor:
    """Return the mean of (s - y)² / 2: least squares.

    Source: Gauss (1809), Theoria motus corporum coelestium.
    """
    rows = data.batch("numbers", x.dtype, batch_size, seed)
    return mean(tf.square(scores(x, rows.features) - rows.targets) / 2)


def ridge_residuals(x: tf.Tensor, *, data: Data, l2: float) -> tf.Tensor:
    """Return the residuals of linear_regression, then √(l2/2) w."""
    return tf.concat([residuals(x, data=data), math.sqrt(l2 / 2) * x[..., :-1]], axis=-1)


@fitted(
    "numbers",
    dimension=dimension,
    optimum=penalised(optima.squares),
    held_out=error_of_numbers,
    residuals=ridge_residuals,
)
def ridge(x: tf.Tensor, *, data: Data, l2: float, batch_size: int | None, seed: Any) -> tf.Tensor:
    """Return the mean of (s - y)² / 2, plus l2/2 ‖w‖²; scikit-learn's Ridge has alpha = n · l2.

    Source: Hoerl and Kennard (1970), doi:10.1080/00401706.1970.10488634.
    """
    rows = data.batch("numbers", x.dtype, batch_size, seed)
    return mean(tf.square(scores(x, rows.features) - rows.targets) / 2) + ridge_penalty(x, l2)


def lasso_optimum(data: Data, kind: str, l1: float, smoothing: float, **_: Any) -> Optimum:
    """Return the optimum of lasso_smooth; raise UserError if `l1` or `smoothing` is invalid."""
    nonnegative("l1", l1)
    nonnegative("smoothing", smoothing, above=True)
    return optima.linear(data, kind, optima.squares, Penalty(l1=l1, smoothing=smoothing))


@fitted("numbers", dimension=dimension, optimum=lasso_optimum, held_out=error_of_numbers)
def lasso_smooth(x: tf.Tensor, *, data: Data, l1: float, smoothing: float, batch_size: int | None, seed: Any) -> tf.Tensor:
    """Return the mean of (s - y)² / 2, plus l1 Σ (√(wᵢ² + c²) - c), c the smoothing; scikit-learn's Lasso has alpha Σ |wᵢ|.

    The two penalties differ by at most l1 c for each weight. Without corners, the penalty's gradient is small where the weights
    are small.
    Source: Tibshirani (1996), doi:10.1111/j.2517-6161.1996.tb02080.x; the root is Schmidt, Fung, Rosales (2007),
    doi:10.1007/978-3-540-74958-5_28.
    """
    rows = data.batch("numbers", x.dtype, batch_size, seed)
    roots = tf.sqrt(tf.square(x[..., :-1]) + smoothing**2) - smoothing
    penalty = term("penalty", l1 * sums.total(roots))
    return mean(tf.square(scores(x, rows.features) - rows.targets) / 2) + penalty


@fitted("two classes", dimension=dimension, optimum=penalised(optima.logistic), held_out=accuracy_of_signs)
def logistic_regression(x: tf.Tensor, *, data: Data, l2: float, batch_size: int | None, seed: Any) -> tf.Tensor:
    """Return the mean of log(1 + exp s) - y s, y being 0 or 1, plus l2/2 ‖w‖²; scikit-learn's has C = 1 / (n · l2).

    Without l2 there is no minimum if a plane separates the classes. Source: Cox (1958),
    doi:10.1111/j.2517-6161.1958.tb00292.x.
    """
    rows = data.batch("two classes", x.dtype, batch_size, seed)
    s = scores(x, rows.features)
    return mean(tf.nn.softplus(s) - rows.targets * s) + ridge_penalty(x, l2)


@fitted("two classes", dimension=dimension, optimum=penalised(optima.squared_hinge), held_out=accuracy_of_signs)
def svm_squared_hinge(x: tf.Tensor, *, data: Data, l2: float, batch_size: int | None, seed: Any) -> tf.Tensor:
    """Return the mean of max(0, 1 - y s)², y being -1 or 1, plus l2/2 ‖w‖²; scikit-learn's LinearSVC has C = 1 / (n · l2).

    LinearSVC penalises the intercept too. Source: Cortes and Vapnik (1995), doi:10.1007/BF00994018; squared: Fan, Chang, Hsieh,
    Wang, Lin (2008), JMLR 9:1871.
    """
    rows = data.batch("two classes", x.dtype, batch_size, seed)
    short = tf.nn.relu(1 - (2 * rows.targets - 1) * scores(x, rows.features))
    return mean(tf.square(short)) + ridge_penalty(x, l2)


def log_of_mean(data: Data, kind: str, **_: Any) -> np.ndarray:
    """Return the start: weights 0 and the intercept log(mean y), as in scikit-learn's PoissonRegressor."""
    average = data.split(kind).targets.mean()
    return np.append(np.zeros(data.features.shape[1]), math.log(average) if average > 0 else 0.0)


@fitted("counts", dimension=dimension, optimum=penalised(optima.poisson), start=log_of_mean, held_out=deviance_of_counts)
def poisson_regression(x: tf.Tensor, *, data: Data, l2: float, batch_size: int | None, seed: Any) -> tf.Tensor:
    """Return the mean of exp s - y s, plus l2/2 ‖w‖²; scikit-learn's PoissonRegressor has alpha = l2.

    Source: Nelder and Wedderburn (1972), doi:10.2307/2344614, without the log y! of the likelihood, which is constant in x.
    """
    rows = data.batch("counts", x.dtype, batch_size, seed)
    s = scores(x, rows.features)
    return mean(tf.exp(s) - rows.targets * s) + ridge_penalty(x, l2)


def logits(x: tf.Tensor, features: tf.Tensor, classes: int) -> tf.Tensor:
    """Return each row's score for each class; x[..., (d + 1) k], features[n, d] -> [..., n, k]."""
    weights = tf.reshape(x, [*x.shape[:-1], -1, classes])
    return tf.matmul(features, weights[..., :-1, :]) + weights[..., -1:, :]


def softmax_optimum(data: Data, l2: float, **_: Any) -> Optimum:
    """Return the optimum of softmax_regression; raise UserError if `l2` is invalid."""
    nonnegative("l2", l2)
    return optima.softmax(data, l2)


def accuracy_of_classes(data: Data, kind: str, **_: Any) -> dict[str, Any]:
    """Return the measure `held_out_accuracy`: the share of rows whose class has the highest score."""
    worth = lambda x, rows: accuracy(logits(x, rows.features, data.classes), rows.targets)  # noqa: E731
    return on_held_out("accuracy", kind, data, worth)


@fitted(
    "classes",
    dimension=lambda data, **_: (data.features.shape[1] + 1) * data.classes,
    optimum=softmax_optimum,
    held_out=accuracy_of_classes,
    parts=lambda data, **_: ((data.features.shape[1], data.classes), (data.classes,)),
)
def softmax_regression(x: tf.Tensor, *, data: Data, l2: float, batch_size: int | None, seed: Any) -> tf.Tensor:
    """Return the mean of -log softmax(s)[y], s with a score for each of k classes, plus l2/2 ‖W‖².

    x[..., (d + 1) k] holds the weights of the first feature for each class, then those of the next feature, and the intercepts
    last; scikit-learn's LogisticRegression has C = 1 / (n · l2).
    Source: Cox (1966), in David, Research Papers in Statistics; Bishop (2006), Pattern Recognition, section 4.3.4.
    """
    rows = data.batch("classes", x.dtype, batch_size, seed)
    data_term = term("data", cross_entropy(logits(x, rows.features, data.classes), rows.targets))
    weights = tf.reshape(x, [*x.shape[:-1], -1, data.classes])[..., :-1, :]
    return data_term + term("penalty", l2 / 2 * sums.total(tf.square(weights), [-2, -1]))
