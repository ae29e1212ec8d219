"""Findings: the seam between a check and the line that reports its result.

A check is a function of a `Subject` that returns its finding as text. It raises Failed with the remedy, or Skipped if it does
not apply. Any other exception of the user's code is a failure too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from runner.config import build
from runner.errors import UserError, first_line
from runner.losses import Loss

OK, FAILED, SKIPPED = "ok", "FAILED", "skipped"
# Number of random points that are checked beside the guess.
POINTS = 4


class Finding(NamedTuple):
    """The result of a check: its name, its verdict and a text."""

    check: str
    verdict: str
    text: str


class Failed(Exception):
    """The finding of a check that failed, and its remedy."""


class Skipped(Exception):
    """The reason why a check does not apply."""


@dataclass(frozen=True)
class Subject:
    """The subject of the checks: a configuration, its guess and random points, [points, *shape], in double precision."""

    cfg: Any
    points: np.ndarray  # the guess is the first

    def loss(self, dtype: str) -> Loss:
        """Return the loss without noise, as it would be built for this dtype."""
        cfg = copy.deepcopy(self.cfg)
        cfg.dtype = dtype
        keras.config.set_floatx(dtype)
        return build.noiseless(cfg)

    def function(self, dtype: str) -> Callable[[tf.Tensor], tf.Tensor]:
        """Return the loss at step 0, as a function of x."""
        return self.loss(dtype).at(0)

    def x(self, dtype: str) -> tf.Tensor:
        """Return the points, the guess first."""
        return tf.constant(self.points, dtype)

    @property
    def dtype(self) -> str:
        """The configuration's dtype."""
        return self.cfg.dtype.name


Check = Callable[[Subject], str]


def findings(cfg: Any, checks: Mapping[Check, tuple[Check, ...]]) -> Iterator[Finding]:
    """Yield the finding of each check; a check is skipped if one that it needs did not pass.

    Raises UserError if the loss or the guess cannot be built.
    """
    keras.config.set_floatx(cfg.dtype.name)
    keras.utils.set_random_seed(cfg.seed)
    subject = Subject(cfg, points(cfg))
    passed: set[str] = set()
    for check, needs in checks.items():
        if missing := [each.__name__ for each in needs if each.__name__ not in passed]:
            verdict, text = SKIPPED, f"needs {' and '.join(missing)}"
        else:
            verdict, text = verdict_of(check, subject)
        if verdict == OK:
            passed.add(check.__name__)
        yield Finding(check.__name__, verdict, text)


def verdict_of(check: Check, subject: Subject) -> tuple[str, str]:
    """Return a check's verdict and its text."""
    try:
        return OK, check(subject)
    except Skipped as reason:
        return SKIPPED, str(reason)
    except Failed as reason:
        return FAILED, str(reason)
    except Exception as error:
        remedy = "" if isinstance(error, UserError) else "; a run with execution=eager and HYDRA_FULL_ERROR=1 shows where"
        return FAILED, f"{first_line(error)[:300]}{remedy}"


def points(cfg: Any) -> np.ndarray:
    """Return the guess, then points drawn from the loss's domain, or near the guess if the loss declares none."""
    loss = build.loss(cfg)
    guess = build.guess(cfg.guess, loss, cfg.dtype.name, cfg.seed).astype(np.float64)
    draw, shape = np.random.default_rng(cfg.seed), (POINTS, *guess.shape)
    if loss.domain is not None:
        return np.concatenate([guess[None], draw.uniform(*loss.domain, size=shape)])
    return np.concatenate([guess[None], guess + 0.5 * np.maximum(1, np.abs(guess)) * draw.normal(size=shape)])
