"""Allowed ranges of the arguments of optimizers and schedules, which the libraries do not check, and of tolerances."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

# Each range: its text for the error message, and its test.
POSITIVE = ("above 0", lambda value: value > 0)
NOT_NEGATIVE = ("0 or more", lambda value: value >= 0)
FRACTION = ("in [0, 1)", lambda value: 0 <= value < 1)
SHARE = ("in [0, 1]", lambda value: 0 <= value <= 1)
COUNT = ("1 or more", lambda value: value >= 1)
LIBRARIES = ("keras.", "tf_keras.", "tensorflow.")
RANGES = {
    "learning_rate": POSITIVE,
    # A warm-up starts from this rate, which may be 0.
    "initial_learning_rate": NOT_NEGATIVE,
    "end_learning_rate": NOT_NEGATIVE,
    "warmup_target": POSITIVE,
    "adam_lr_ratio": POSITIVE,
    **dict.fromkeys(("beta_1", "beta_2", "adam_beta_1", "adam_beta_2", "rho", "momentum", "ema_momentum"), FRACTION),
    **dict.fromkeys(("epsilon", "epsilon_1", "epsilon_2"), POSITIVE),
    **dict.fromkeys(("weight_decay", "adam_weight_decay", "beta", "warmup_steps", "initial_accumulator_value"), NOT_NEGATIVE),
    **dict.fromkeys(
        (f"{name}_regularization_strength" for name in ("l1", "l2", "l2_shrinkage")),
        NOT_NEGATIVE,
    ),
    **dict.fromkeys(("clipnorm", "clipvalue", "global_clipnorm", "clip_threshold", "loss_scale_factor"), POSITIVE),
    **dict.fromkeys(("decay_steps", "first_decay_steps", "ema_overwrite_frequency", "ns_steps"), COUNT),
    **dict.fromkeys(("decay_rate", "t_mul", "m_mul", "power"), POSITIVE),
    "alpha": SHARE,
}
# The longest name that MLflow's stores accept.
NAME_LENGTH = 250
# The spacing of floating-point numbers at 1.
RESOLUTION = {"float32": 2.0**-23, "float64": 2.0**-52}
# The smallest and the largest normal number. Compiled code rounds smaller numbers to 0; larger numbers become infinite.
SIZES = {"float32": (2.0**-126, 2.0**128 * (1 - 2.0**-24)), "float64": (2.0**-1022, float.fromhex("0x1.fffffffffffffp1023"))}
# Groups whose numbers are converted to x's dtype.
OF_DTYPE = ("loss", "instance", "noise", "guess", "optimizer", "stopping")


def faults(plain: Mapping[str, Any], dtype: str) -> Iterator[str]:
    """Yield the errors of a resolved configuration's numbers; a value that is not a number is reported by the type check."""
    if isinstance(optimizer := plain.get("optimizer"), dict):
        yield from of_optimizer("optimizer", optimizer)
    for group in OF_DTYPE:
        yield from unheld(group, plain.get(group), dtype)
    for name, rule in (plain.get("stopping") or {}).items():
        value: Any = rule.get("tolerance") if isinstance(rule, dict) else None
        if is_number(value) and 0 < value < RESOLUTION[dtype]:
            yield (
                f"stopping.{name}.tolerance must be 0, or {RESOLUTION[dtype]:.2g} or more, which is what {dtype} resolves, "
                f"got {value!r}; set stopping.{name}.tolerance=1e-6, or dtype=float64"
            )


def unheld(path: str, value: Any, dtype: str) -> Iterator[str]:
    """Yield an error for each finite number that the dtype would round to 0 or to infinity."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from unheld(f"{path}.{key}", each, dtype)
    elif isinstance(value, list):
        for i, each in enumerate(value):
            yield from unheld(f"{path}[{i}]", each, dtype)
    elif isinstance(value, float) and math.isfinite(value) and value != 0:
        least, most = SIZES[dtype]
        if not least <= abs(value) <= most:
            instead = "; set dtype=float64" if dtype == "float32" and SIZES["float64"][0] <= abs(value) else ""
            yield f"{path} must be 0, or from {least:.2g} to {most:.2g} in size, which {dtype} holds, got {value!r}{instead}"


def of_optimizer(path: str, node: Mapping[str, Any]) -> Iterator[str]:
    """Yield the errors of a library optimizer's numbers, and of the schedules within it."""
    if not str(node.get("_target_")).startswith(LIBRARIES):
        return
    for key, value in node.items():
        if isinstance(value, dict):
            yield from of_optimizer(f"{path}.{key}", value)
        elif isinstance(value, list):
            # A list holds a schedule's steps or rates.
            for i, each in enumerate(value):
                yield from of_number(f"{path}.{key}[{i}]", each, NOT_NEGATIVE)
        else:
            yield from of_number(f"{path}.{key}", value, RANGES.get(key))


def of_number(path: str, value: Any, allowed: tuple[str, Any] | None) -> Iterator[str]:
    """Yield the error of one number, if there is one."""
    if not is_number(value):
        return
    words, holds = allowed or ("", lambda _: True)
    if not math.isfinite(value) or not holds(value):
        yield f"{path} must be {' '.join(filter(None, ['a finite number', words]))}, got {value!r}"


def names(tracking: Mapping[str, Any]) -> Iterator[str]:
    """Yield an error for each name, of the run or its experiment, that is empty, too long or not printable."""
    for key in ("name", "experiment"):
        name = tracking.get(key)
        if isinstance(name, str) and (not 1 <= len(name) <= NAME_LENGTH or not name.isprintable()):
            yield f"tracking.{key} must be 1 to {NAME_LENGTH} printable characters, got {name[:NAME_LENGTH]!r}"


def is_number(value: Any) -> bool:
    """Return whether a value is a number; YAML's `true` is not one."""
    return isinstance(value, int | float) and not isinstance(value, bool)
