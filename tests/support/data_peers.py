"""The losses from data in other libraries, by name: what their values and optima are held against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special
from sklearn import decomposition, linear_model, metrics, neural_network, svm

Arrays = tuple[np.ndarray, np.ndarray]  # features and targets


@dataclass(frozen=True)
class Peer:
    """A loss by another library's functions; where it fits the same model, the weights that it comes to, of all rows."""

    value: Callable[[np.ndarray, np.ndarray, np.ndarray], float]  # of x, features and targets
    fitted: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None  # of features and targets


def score(x: np.ndarray, features: np.ndarray) -> np.ndarray:
    return features @ x[:-1] + x[-1]


def squares(x: np.ndarray, features: np.ndarray, y: np.ndarray) -> float:
    return metrics.mean_squared_error(y, score(x, features)) / 2


def weights(model: Any, features: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Fit a model of scikit-learn's and return its weights, the intercept last."""
    model.fit(features, y)
    return np.append(np.ravel(model.coef_), model.intercept_)


def ridge_penalty(x: np.ndarray, l2: float) -> float:
    return l2 / 2 * np.sum(x[:-1] ** 2)


def logistic(x: np.ndarray, features: np.ndarray, y: np.ndarray) -> float:
    return metrics.log_loss(y, special.expit(score(x, features))) + ridge_penalty(x, 0.01)


def hinge(x: np.ndarray, features: np.ndarray, y: np.ndarray) -> float:
    return np.mean(np.maximum(0, 1 - np.where(y == 1, 1, -1) * score(x, features)) ** 2) + ridge_penalty(x, 0.01)


def poisson(x: np.ndarray, features: np.ndarray, y: np.ndarray) -> float:
    # The deviance is that to the best fit of each row by itself, whose loss is y - y log y.
    best = np.mean(y - special.xlogy(y, y))
    return metrics.mean_poisson_deviance(y, np.exp(score(x, features))) / 2 + best + ridge_penalty(x, 0.01)


def softmax(x: np.ndarray, features: np.ndarray, y: np.ndarray) -> float:
    matrix = x.reshape(features.shape[1] + 1, -1)
    p = special.softmax(features @ matrix[:-1] + matrix[-1], axis=1)
    return metrics.log_loss(y, p) + ridge_penalty(matrix, 0.01)


def softmax_fit(features: np.ndarray, y: np.ndarray) -> np.ndarray:
    model = linear_model.LogisticRegression(C=1 / (len(y) * 0.01), solver="newton-cholesky", tol=1e-12).fit(features, y)
    return np.concatenate([model.coef_.T, model.intercept_[None]]).ravel()


def factorization(x: np.ndarray, features: np.ndarray, y: np.ndarray) -> float:
    n, d = features.shape
    u, v = x[: 2 * n].reshape(n, 2), x[2 * n :].reshape(d, 2)
    return (np.linalg.norm(features - u @ v.T) ** 2 + np.linalg.norm(x) ** 2) / (2 * n)


def factorization_fit(features: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return scikit-learn's two components, each shrunk by what l2 = 1 takes of its singular value."""
    model = decomposition.TruncatedSVD(2, algorithm="arpack").fit(features)
    s = model.singular_values_
    u, root = model.transform(features) / s, np.sqrt(s - 1)
    return np.concatenate([(u * root).ravel(), (model.components_.T * root).ravel()])


def perceptron(x: np.ndarray, features: np.ndarray, y: np.ndarray) -> float:
    """Return the loss of scikit-learn's network with these weights in the place of its own."""
    inside, d = 32, features.shape[1]
    model = neural_network.MLPClassifier([inside], max_iter=1).partial_fit(features, y, classes=np.unique(y))
    k = model.n_outputs_
    cuts = np.cumsum([d * inside, inside, inside * k])
    first, first_bias, second, second_bias = np.split(x, cuts)
    model.coefs_ = [first.reshape(d, inside), second.reshape(inside, k)]
    model.intercepts_ = [first_bias, second_bias]
    # Its log_loss would cut probabilities off at 2e-16.
    return -np.mean(np.log(model.predict_proba(features)[np.arange(len(y)), y]))


PEERS = {
    "linear_regression": Peer(squares, lambda a, y: weights(linear_model.LinearRegression(), a, y)),
    "ridge": Peer(
        lambda x, a, y: squares(x, a, y) + ridge_penalty(x, 0.1),
        lambda a, y: weights(linear_model.Ridge(alpha=len(y) * 0.1, solver="cholesky"), a, y),
    ),
    "lasso_smooth": Peer(lambda x, a, y: squares(x, a, y) + 0.1 * np.sum(np.hypot(x[:-1], 0.01) - 0.01)),
    "logistic_regression": Peer(
        logistic,
        lambda a, y: weights(linear_model.LogisticRegression(C=1 / (len(y) * 0.01), solver="newton-cholesky", tol=1e-12), a, y),
    ),
    "softmax_regression": Peer(softmax, softmax_fit),
    # An intercept that is a hundred times a feature's weight is hardly penalised.
    "svm_squared_hinge": Peer(
        hinge,
        lambda a, y: weights(
            svm.LinearSVC(C=1 / (len(y) * 0.01), dual=False, tol=1e-10, max_iter=100_000, intercept_scaling=100), a, y
        ),
    ),
    "poisson_regression": Peer(
        poisson, lambda a, y: weights(linear_model.PoissonRegressor(alpha=0.01, solver="newton-cholesky", tol=1e-12), a, y)
    ),
    "matrix_factorization": Peer(factorization, factorization_fit),
    "mlp": Peer(perceptron),
}
