"""Instances of a loss: a function `(of: Loss, …) -> Loss` shifts, rotates and scales it, so that axes favour no optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import tensorflow as tf

from runner.errors import UserError
from runner.losses.base import Loss


def none(of: Loss) -> Loss:
    """Return the loss unchanged."""
    return of


def random(of: Loss, *, seed: int, shift: float, rotation: bool, scaling: float) -> Loss:
    """Return x ↦ f(z) with x = c + s + R D (z - c), where c is the middle of f's domain, or 0 if f declares no domain.

    s is drawn uniformly from `shift` times the domain's box around 0. R is a uniformly distributed orthogonal matrix, or 1
    without `rotation` or if x is a scalar. D is diagonal; its logarithm is drawn uniformly, so that the condition number of a
    Hessian grows by a factor of `scaling` at most. All three are drawn by `seed` (not the run's), independently of each other:
    turning one off (shift 0, rotation false, scaling 1) does not change the others. R takes d² numbers.

    Start and minimisers are mapped like x, so the loss there does not change. The domain is the smallest box around the mapped
    domain; a rotated domain does not fill its box. Measures and residuals are those of z.

    Source: Hansen, Finck, Ros, Auger (2009), INRIA RR-6829, section 0.2, whose instances rotate about the minimiser and have a
    fixed D; R by QR with the signs of Mezzadri (2007), arXiv:math-ph/0609050.

    Raises UserError if the loss has no shape, if it has no domain and `shift` is above 0, or if `seed`, `shift` or `scaling` is
    out of range.
    """
    faults = list(unfit(of, seed, shift, scaling))
    if faults:
        raise UserError("; ".join(faults))
    assert of.shape is not None
    shifts, turns, factors = (np.random.default_rng([seed, part]) for part in range(3))
    low, high = np.zeros((2, *of.shape)) if of.domain is None else of.domain
    middle, half = (low + high) / 2, (high - low) / 2
    to = middle + shift * half * shifts.uniform(-1, 1, of.shape)
    stretch = scaling ** factors.uniform(-0.25, 0.25, of.shape)
    turned = rotation and bool(of.shape)
    turn = orthogonal(turns, of.shape[0]) if turned else np.ones(())

    def forward(z: np.ndarray) -> np.ndarray:
        away = stretch * (z - middle)
        return to + (away @ turn.T if turned else away)

    def back(x: tf.Tensor) -> tf.Tensor:
        away = x - tf.constant(to, x.dtype)
        own = tf.tensordot(away, tf.constant(turn, x.dtype), 1) if turned else away
        return own * tf.constant(1 / stretch, x.dtype) + tf.constant(middle, x.dtype)

    reach = np.abs(turn) @ (stretch * half) if turned else stretch * half
    return replace(
        of,
        function=lambda x, **drawn: of.function(back(x), **drawn),
        domain=None if of.domain is None else np.stack([to - reach, to + reach]),
        start=None if of.start is None else forward(of.start),
        minimisers=None if of.minimisers is None else forward(of.minimisers),
        measures={name: lambda x, measure=measure: measure(back(x)) for name, measure in of.measures.items()},
        residuals=None if (residuals := of.residuals) is None else lambda x: residuals(back(x)),
        # A rotation mixes the numbers of all tensors.
        parts=() if turned else of.parts,
    )


def unfit(of: Loss, seed: int, shift: float, scaling: float) -> Iterator[str]:
    """Yield the reasons why an instance cannot be made."""
    if of.shape is None:
        yield "instance=random needs the loss's dimension, which is not declared; set +loss.dimension=2 (0: scalar x)"
    if not isinstance(seed, int) or seed < 0:
        yield f"instance.seed must be a whole number of 0 or more, got {seed!r}; set instance.seed=1"
    if not 0 <= shift <= 1:
        yield f"instance.shift must be in 0 … 1, of half the domain, got {shift!r}; set instance.shift=0.8"
    elif shift > 0 and of.domain is None:
        yield "instance.shift is a part of the loss's domain, and it declares none; set instance.shift=0"
    if not 1 <= scaling < float("inf"):
        yield f"instance.scaling must be 1 (none) or more, got {scaling!r}; set instance.scaling=10"


def orthogonal(draw: np.random.Generator, d: int) -> np.ndarray:
    """Return a uniformly distributed orthogonal matrix [d, d]."""
    q, r = np.linalg.qr(draw.normal(size=(d, d)))
    # QR alone is not uniform, because the algorithm chooses the signs.
    return q * np.sign(np.diag(r))
