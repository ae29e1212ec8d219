"""Facts of the losses of recorded runs: minimum, minimisers, and the largest curvature of a quadratic."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import yaml

from runner.security import targets

# The largest dimension in which the curvature is computed.
DIMENSION = 200
# Tolerance within which two Hessians count as equal, relative to the largest entry.
EQUAL = 1e-8
# Prefix of the targets of a record that may be built: code of other packages is never run.
OURS = "runner.losses."


@dataclass(frozen=True)
class Fact:
    """The known facts of a loss."""

    minimum: float = np.nan
    minimisers: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))  # [m, d]
    curvature: float | None = None  # of a quadratic, the largest eigenvalue L of its Hessian

    @property
    def fields(self) -> dict[str, Any]:
        """The fields as a message holds them."""
        return vars(self) | {"minimisers": self.minimisers.tolist(), "shape": self.minimisers.shape}

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Fact:
        """Return the fact that a message's fields describe."""
        minimisers = np.array(fields["minimisers"], float).reshape(fields["shape"])
        return cls(fields["minimum"], minimisers, fields["curvature"])


UNKNOWN = Fact()


def of(configs: Mapping[str, str]) -> dict[str, Fact]:
    """Return the facts of the losses in these configurations (YAML); only losses of this package are built, for security."""
    if not configs:
        return {}
    from runner.system import quiet, startup

    # TensorFlow prints messages while it is imported, and Keras's optional imports take long.
    with quiet.tensorflow(), startup.without_optional_imports():
        from runner.config import build  # noqa: F401
    found = {}
    for key, text in configs.items():
        plain = yaml.safe_load(text)
        nodes = {name: plain[name] for name in ("loss", "instance") if name in plain}
        ours = all(str(name).startswith(OURS) for _, name in targets.targets("", nodes))
        if ours and not list(targets.faults("", nodes)):
            # A loss with an argument `seed` may draw its data by it.
            target = targets.target("loss._target_", nodes["loss"].get("_target_"))
            seeded = "seed" in inspect.signature(target).parameters
            found[key] = fact(json.dumps(nodes), plain["seed"] if seeded else 0)
    return found


@cache
def fact(nodes: str, seed: int) -> Fact:
    """Return the facts of a loss; UNKNOWN if the loss cannot be built."""
    from omegaconf import OmegaConf

    from runner.config import build, schema

    cfg = OmegaConf.create({**json.loads(nodes), "seed": seed, "noise": None})
    cfg = OmegaConf.merge(OmegaConf.structured(schema.Config), cfg, {"dtype": "float64"})
    try:
        loss = build.noiseless(cfg)
    except Exception:
        # The loss's data may have been removed since the run.
        return UNKNOWN
    minimum = np.nan if loss.minimum is None else loss.minimum
    minimisers = np.empty((0, 0)) if loss.minimisers is None else loss.minimisers.reshape(len(loss.minimisers), -1)
    return Fact(minimum, minimisers, curvature(loss) if loss.seed is None else None)


def curvature(loss: Any) -> float | None:
    """Return the largest eigenvalue of a quadratic's Hessian, by differences of gradients, which are exact there; else None.

    A loss without a start, or of a dimension above DIMENSION, gives None too.
    """
    if loss.start is None or loss.start.size > DIMENSION:
        return None
    import tensorflow as tf

    d = loss.start.size
    start, away = loss.start.reshape(-1), np.random.default_rng(0).normal(size=d)

    def gradients(points: np.ndarray) -> np.ndarray:
        x = tf.constant(points.reshape(-1, *loss.start.shape))
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = tf.reduce_sum(loss(x))
        return np.asarray(tape.gradient(total, x)).reshape(-1, d)

    found = []
    for at, length in ((start, 1.0), (start + away, 0.5)):
        rows = gradients(np.concatenate([at[None], at + length * np.eye(d)]))
        found.append((rows[1:] - rows[0]) / length)
    size = np.abs(found[0]).max()
    if not np.isfinite(size) or np.abs(found[0] - found[1]).max() > EQUAL * size or not size:
        return None
    return float(np.linalg.eigvalsh((found[0] + found[0].T) / 2).max())
