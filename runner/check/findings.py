"""What checks come to: the seam between a check and the line that tells of it.

A check is a function of a `Subject` that returns what it found. It raises Failed with what is to be done, or Skipped where it
does not apply; whatever else the user's code raises in it is a failure too.
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
# Random points that are looked at beside the guess.
POINTS = 4


class Finding(NamedTuple):
    """What a check came to."""

    check: str
    verdict: str
    text: str


class Failed(Exception):
    """What was found, and what is to be done about it."""


class Skipped(Exception):
    """Why a check does not apply."""


@dataclass(frozen=True)
class Subject:
    """What is checked: a configuration, its guess and some random points, [points, *shape], in double precision."""

    cfg: Any
    points: np.ndarray  # the guess is the first

    def loss(self, dtype: str) -> Loss:
        """Return the loss without noise, as it would be built for this dtype."""
        cfg = copy.deepcopy(self.cfg)
        cfg.dtype = dtype
        keras.config.set_floatx(dtype)
        return build.noiseless(cfg)

    def function(self, dtype: str) -> Callable[[tf.Tensor], tf.Tensor]:
        """Return what the loss is at step 0."""
        return self.loss(dtype).at(0)

    def x(self, dtype: str) -> tf.Tensor:
        """Return the points, the guess first."""
        return tf.constant(self.points, dtype)

    @property
    def dtype(self) -> str:
        """The configuration's own."""
        return self.cfg.dtype.name


Check = Callable[[Subject], str]


def findings(cfg: Any, checks: Mapping[Check, tuple[Check, ...]]) -> Iterator[Finding]:
    """Yield what each check came to; those that need one that did not pass are skipped.

    Raises UserError where there is no loss or no guess to be checked.
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
    """Return whether a check passed, and what it found."""
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
    """Return the guess, then points drawn from the loss's domain, or near the guess where it declares none."""
    loss = build.loss(cfg)
    guess = build.guess(cfg.guess, loss, cfg.dtype.name, cfg.seed).astype(np.float64)
    draw, shape = np.random.default_rng(cfg.seed), (POINTS, *guess.shape)
    if loss.domain is not None:
        return np.concatenate([guess[None], draw.uniform(*loss.domain, size=shape)])
    return np.concatenate([guess[None], guess + 0.5 * np.maximum(1, np.abs(guess)) * draw.normal(size=shape)])
