"""The ranges of numbers that libraries take without a word: those of optimizers and schedules, by argument, and tolerances."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

# What an argument must be, in words, and the test of it.
POSITIVE = ("above 0", lambda value: value > 0)
NOT_NEGATIVE = ("0 or more", lambda value: value >= 0)
FRACTION = ("in [0, 1)", lambda value: 0 <= value < 1)
SHARE = ("in [0, 1]", lambda value: 0 <= value <= 1)
COUNT = ("1 or more", lambda value: value >= 1)
LIBRARIES = ("keras.", "tf_keras.", "tensorflow.")
RANGES = {
    "learning_rate": POSITIVE,
    # A warm-up begins there.
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
# What MLflow's stores hold.
NAME_LENGTH = 250
# The spacing of numbers at 1.
RESOLUTION = {"float32": 2.0**-23, "float64": 2.0**-52}
# The least and the largest normal number: what is smaller becomes 0 in compiled code, what is larger infinite.
SIZES = {"float32": (2.0**-126, 2.0**128 * (1 - 2.0**-24)), "float64": (2.0**-1022, float.fromhex("0x1.fffffffffffffp1023"))}
# Groups whose numbers meet those of x.
OF_DTYPE = ("loss", "instance", "noise", "guess", "optimizer", "stopping")


def faults(plain: Mapping[str, Any], dtype: str) -> Iterator[str]:
    """Yield what of a resolved configuration's numbers no run can use; whatever is no number is told by its type."""
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
    """Yield the finite numbers that a dtype does not hold: those that would be 0, or infinite."""
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
    """Yield what is wrong with the numbers of an optimizer of a library's, or of a schedule within it."""
    if not str(node.get("_target_")).startswith(LIBRARIES):
        return
    for key, value in node.items():
        if isinstance(value, dict):
            yield from of_optimizer(f"{path}.{key}", value)
        elif isinstance(value, list):
            # A schedule's steps and rates.
            for i, each in enumerate(value):
                yield from of_number(f"{path}.{key}[{i}]", each, NOT_NEGATIVE)
        else:
            yield from of_number(f"{path}.{key}", value, RANGES.get(key))


def of_number(path: str, value: Any, allowed: tuple[str, Any] | None) -> Iterator[str]:
    """Yield what is wrong with one number."""
    if not is_number(value):
        return
    words, holds = allowed or ("", lambda _: True)
    if not math.isfinite(value) or not holds(value):
        yield f"{path} must be {' '.join(filter(None, ['a finite number', words]))}, got {value!r}"


def names(tracking: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of a run and its experiment that a page could not show."""
    for key in ("name", "experiment"):
        name = tracking.get(key)
        if isinstance(name, str) and (not 1 <= len(name) <= NAME_LENGTH or not name.isprintable()):
            yield f"tracking.{key} must be 1 to {NAME_LENGTH} printable characters, got {name[:NAME_LENGTH]!r}"


def is_number(value: Any) -> bool:
    """Tell whether a value is a number; YAML's `true` is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)
