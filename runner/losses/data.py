"""The data sets that losses are fitted to: scikit-learn's bundled sets, split and standardised, and synthetic ones.

Nothing is downloaded. A data set is a function of the keys in its file in conf/loss/data; the same keys give the same object.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from runner.errors import UserError
from runner.losses import minibatch

# The kinds of targets, and the sets that have them, as an error message describes them.
KINDS = {
    "numbers": "numbers as targets (diabetes; synthetic)",
    "counts": "counts as targets (diabetes; synthetic)",
    "classes": "classes as targets (breast_cancer, digits, iris, wine; synthetic with loss.data.classes=2)",
    "two classes": "two classes as targets (breast_cancer; synthetic with loss.data.classes=2)",
}


class Rows(NamedTuple):
    """Features, [n, d], and targets, [n], of some rows."""

    features: Any
    targets: Any


@dataclass(frozen=True, eq=False)
class Data:
    """The rows of a data set in double precision: n rows to fit and m held-out rows, with all kinds of targets of the set."""

    name: str
    features: np.ndarray  # [n, d]
    held_out_features: np.ndarray  # [m, d]
    targets: Mapping[str, tuple[np.ndarray, np.ndarray]]  # by kind: [n] and [m]
    classes: int = 0  # the number of classes; 0: no classes
    tensors: dict[Any, Rows] = field(default_factory=dict)

    def kind_for(self, loss: str, *kinds: str) -> str:
        """Return the first of these kinds of targets that the set has.

        Raises UserError if the set has none of them.
        """
        has = {*self.targets, *(["two classes"] if self.classes == 2 else [])}
        for kind in kinds:
            if kind in has:
                return kind
        raise UserError(
            f"loss.data must have {' or '.join(KINDS[kind] for kind in kinds)} for {loss}, got {self.name} with "
            f"{self.classes or ''}{' ' if self.classes else ''}{' and '.join(self.targets)}; set loss/data=…"
        )

    def split(self, kind: str, *, held_out: bool = False) -> Rows:
        """Return the rows to fit, or the held-out rows, as arrays."""
        targets = self.targets["classes" if kind == "two classes" else kind][int(held_out)]
        return Rows(self.held_out_features if held_out else self.features, targets)

    def rows(self, kind: str, dtype: tf.DType, *, held_out: bool = False) -> Rows:
        """Return the rows as tensors, classes as int32.

        The tensors are made once and outside any graph, so that graphs take them as inputs. Constants would be copied into each
        program, and XLA would try to fold computations on them.
        """
        key = kind, dtype, held_out
        if key not in self.tensors:
            features, targets = self.split(kind, held_out=held_out)
            with tf.init_scope():
                whole = tf.constant(targets, tf.int32 if kind == "classes" else dtype)
                self.tensors[key] = Rows(tf.constant(features, dtype), whole)
        return self.tensors[key]

    def features_as(self, dtype: tf.DType) -> tf.Tensor:
        """Return the features of the rows to fit as a tensor, without targets."""
        return self.rows(next(iter(self.targets)), dtype).features

    def batch(self, kind: str, dtype: tf.DType, size: int | None, seed: Any) -> Rows:
        """Return the rows of a step's mini-batch, or all rows to fit if the size is None."""
        rows = self.rows(kind, dtype)
        if size is None:
            return rows
        chosen = minibatch.rows(seed, len(self.features), size)
        return Rows(tf.gather(rows.features, chosen), tf.gather(rows.targets, chosen))

    def check_batch(self, size: Any) -> None:
        """Raise UserError if no mini-batch can have this size."""
        count = len(self.features)
        if size is not None and (type(size) is not int or not 1 <= size <= count):
            raise UserError(
                f"loss.batch_size must be a whole number in 1 … {count}, the rows of {self.name} that are not held out, or "
                f"null for all of them in each step, got {size!r}; set loss.batch_size={min(32, count)}"
            )


@cache
def bundled(name: str, held_out: Any, split_seed: Any) -> Data:
    """Return one of scikit-learn's data sets, split at random and standardised by mean and deviation of the rows to fit.

    `held_out` is the share of rows that are held out, `split_seed` the seed of the split; a run's seed does not change the
    data. A feature that is the same in all rows to fit becomes 0 there. Targets that are numbers are standardised too; as
    counts they are not changed.
    """
    # The import takes 1.6 s, which only these losses should cost.
    from sklearn import datasets

    loaded = getattr(datasets, f"load_{name}")()
    mine, held = parted(len(loaded.data), held_out, split_seed)
    mean, deviation = loaded.data[mine].mean(axis=0), loaded.data[mine].std(axis=0)
    features = (loaded.data - mean) / np.where(deviation > 0, deviation, 1)
    if "target_names" in loaded:
        classes = loaded.target.astype(np.int32)
        return Data(name, features[mine], features[held], {"classes": (classes[mine], classes[held])}, int(classes.max()) + 1)
    numbers = (loaded.target - loaded.target[mine].mean()) / loaded.target[mine].std()
    kinds = {"numbers": numbers, "counts": loaded.target}
    return Data(name, features[mine], features[held], {kind: (each[mine], each[held]) for kind, each in kinds.items()})


def parted(count: int, held_out: Any, split_seed: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the rows to fit and of the held-out rows."""
    check_share(held_out)
    check_seed("split_seed", split_seed)
    shuffled = np.random.default_rng(split_seed).permutation(count)
    cut = count - round(count * held_out)
    return np.sort(shuffled[:cut]), np.sort(shuffled[cut:])


def check_share(held_out: Any) -> None:
    """Raise UserError if this is no allowed share of held-out rows."""
    if not isinstance(held_out, int | float) or not 0 <= held_out <= 0.9:
        raise UserError(f"loss.data.held_out must be a share in 0 … 0.9, got {held_out!r}; set it with loss.data.held_out=0.2")


def check_seed(name: str, seed: Any) -> None:
    """Raise UserError if this is no seed."""
    if type(seed) is not int or seed < 0:
        raise UserError(f"loss.data.{name} must be a whole number of 0 or more, got {seed!r}; set it with loss.data.{name}=0")


def diabetes(*, held_out: float, split_seed: int) -> Data:
    """Return 442 patients: 10 features, and the progress of the disease within a year as numbers and as counts.

    Source: Efron, Hastie, Johnstone, Tibshirani (2004), doi:10.1214/009053604000000067.
    """
    return bundled("diabetes", held_out, split_seed)


def breast_cancer(*, held_out: float, split_seed: int) -> Data:
    """Return 569 tumours: 30 features, 2 classes. Source: Street, Wolberg, Mangasarian (1993), doi:10.1117/12.148698."""
    return bundled("breast_cancer", held_out, split_seed)


def wine(*, held_out: float, split_seed: int) -> Data:
    """Return 178 wines: 13 features, 3 classes. Source: Aeberhard and Forina (1992), UCI, doi:10.24432/C5PC7J."""
    return bundled("wine", held_out, split_seed)


def digits(*, held_out: float, split_seed: int) -> Data:
    """Return 1,797 handwritten digits: 64 features, the pixels, 10 classes. Source: Alpaydin and Kaynak (1998), UCI."""
    return bundled("digits", held_out, split_seed)


def iris(*, held_out: float, split_seed: int) -> Data:
    """Return 150 flowers: 4 features, 3 classes. Source: Fisher (1936), doi:10.1111/j.1469-1809.1936.tb02137.x."""
    return bundled("iris", held_out, split_seed)


def positive(name: str, value: Any, least: int, kinds: tuple[type, ...]) -> None:
    """Raise UserError if a key of the synthetic set is not a number of these kinds, is not finite, or is less than `least`."""
    if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value < np.inf:
        word = "number" if float in kinds else "whole number"
        raise UserError(f"loss.data.{name} must be a {word} of {least} or more, got {value!r}; set loss.data.{name}={least}")


def synthetic(
    *, rows: int, dimension: int, condition_number: float, noise: float, classes: int | None, held_out: float, data_seed: int
) -> Data:
    """Return rows of Gaussian features whose covariance has exactly this condition number, and targets of a linear model.

    The features of the rows to fit have mean 0 and the covariance V diag(c) Vᵀ, with V a random rotation and c from 1 to
    1/condition_number, evenly spaced on a logarithmic scale. So least squares has this condition number, the intercept
    included. With the score s = wᵀ features of variance 1, targets are the numbers s + noise · ε, ε standard normal, and the
    counts drawn from Poisson(exp s). If `classes` is given, the target is instead the class k of the highest
    wₖᵀ features + noise · εₖ.
    """
    for name, value in (("rows", rows), ("dimension", dimension)):
        positive(name, value, 1, (int,))
    positive("condition_number", condition_number, 1, (int, float))
    positive("noise", noise, 0, (int, float))
    if classes is not None:
        positive("classes", classes, 2, (int,))
    check_share(held_out)
    check_seed("data_seed", data_seed)
    return drawn(rows, dimension, float(condition_number), float(noise), classes or 0, float(held_out), data_seed)


@cache
def drawn(count: int, d: int, condition_number: float, noise: float, classes: int, held_out: float, seed: int) -> Data:
    """Return the data set that `synthetic` describes; raise UserError if too few rows are left to fit."""
    random, held = np.random.default_rng(seed), round(count * held_out)
    mine = count - held
    if mine < d + 1:
        raise UserError(
            f"loss.data.rows must leave {d + 1} or more to fit features of dimension {d}, got {mine} and {held} held out; "
            f"set loss.data.rows={2 * (d + 1) + held}"
        )
    curvatures = condition_number ** -np.linspace(0.0, 1.0, d)
    back = np.sqrt(curvatures)[:, None] * np.linalg.qr(random.normal(size=(d, d)))[0].T
    # The columns are orthogonal to the column of ones, which makes their mean 0, and to each other.
    ones = np.concatenate([np.ones((mine, 1)), random.normal(size=(mine, d))], axis=1)
    features = np.sqrt(mine) * np.linalg.qr(ones)[0][:, 1:] @ back
    outside = random.normal(size=(held, d)) @ back
    weights = random.normal(size=(d, classes or 1))
    weights /= np.linalg.norm(back @ weights, axis=0)
    scores = np.concatenate([features, outside]) @ weights
    noisy = scores + noise * random.normal(size=scores.shape)
    kinds = {"numbers": noisy[:, 0], "counts": random.poisson(np.exp(scores[:, 0])).astype(float)}
    if classes:
        kinds = {"classes": noisy.argmax(axis=1).astype(np.int32)}
    targets = {kind: (each[:mine], each[mine:]) for kind, each in kinds.items()}
    return Data("synthetic", features, outside, targets, classes)
