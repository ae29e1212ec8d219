"""A composed configuration is bounded in what its interpolations come to, before it is resolved: each can repeat others."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import Container, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException

from runner.errors import UserError
from runner.security import secrets
from runner.security.yaml_limits import BYTES, INTERPOLATIONS, LEVELS, VALUES

# The values of a composed configuration, the interpolations that are resolved for them, and the characters these bring.
BOUNDS = {"values": 2 * VALUES, "interpolations": INTERPOLATIONS, "characters by interpolation": BYTES}


class Exceeded(BaseException):
    """A bound of a composed configuration was passed; not an Exception, which OmegaConf would take for one of its own."""


class Budget:
    """What a configuration may yet come to while it is composed and resolved."""

    current: Budget | None = None

    def __init__(self) -> None:
        self.left = dict(BOUNDS)

    def spend(self, what: str, number: int = 1) -> None:
        """Count; raises Exceeded beyond a bound."""
        self.left[what] -= number
        if self.left[what] < 0:
            raise Exceeded(f"a configuration must come to {BOUNDS[what]} {what} or less, with every interpolation written out")

    def walk(self, node: Any, level: int = 0) -> None:
        """Count the values that a node stands for; what cannot be resolved is told later, by who needs it."""
        self.spend("values")
        if not isinstance(node, Container) or node._is_none() or node._is_missing():
            return
        if level > LEVELS:
            raise Exceeded(f"a configuration must be nested {LEVELS} levels or less, with every interpolation written out")
        keys: Any = node.keys() if OmegaConf.is_dict(node) else range(len(node._content or []))  # type: ignore[arg-type]
        for key in [*keys]:
            child: Any = node._get_node(key)
            self.walk(child._maybe_dereference_node() if child is not None else None, level + 1)


@contextmanager
def limited() -> Iterator[Budget]:
    """Give a budget to what is resolved within; raises UserError where that does not suffice."""
    before, Budget.current = Budget.current, Budget()
    try:
        yield Budget.current
    except Exceeded as error:
        raise UserError(str(error)) from error
    finally:
        Budget.current = before


def expandable(cfg: Any) -> None:
    """Raise UserError for a composed configuration that stands for too much."""
    # What resolvers give once only (a time, a process id) is theirs to give when it is needed.
    cache = copy.deepcopy(OmegaConf.get_cache(cfg))
    with limited() as budget:
        budget.walk(cfg)
    OmegaConf.set_cache(cfg, cache)


def guard() -> None:
    """Have what Hydra composes, and what is resolved of it then, counted."""
    for owner, name, by in (
        (ConfigLoaderImpl, "load_configuration", composing),
        (Container, "_resolve_node_interpolation", resolving),
        (Container, "_evaluate_custom_resolver", resolving),
    ):
        original = getattr(owner, name)
        # Others may guard the same.
        if not getattr(original, "is_counted", False):
            counted = by(original)
            setattr(counted, "is_counted", True)
            setattr(owner, name, counted)


def composing(load: Callable[..., Any]) -> Callable[..., Any]:
    """Return what composes a configuration, within bounds, and has its secrets remembered."""

    @wraps(load)
    def load_configuration(*args: Any, **keys: Any) -> Any:
        with limited():
            cfg = load(*args, **keys)
        expandable(cfg)
        secrets.learn(OmegaConf.to_container(cfg))
        # A folder may be named by it; an override that cannot be resolved is told by its own key later, where it is read.
        with suppress(OmegaConfBaseException), read_write(cfg.hydra.job):
            cfg.hydra.job.override_dirname = secrets.masked(cfg.hydra.job.override_dirname).replace(secrets.MASK, "hidden")
        return cfg

    return load_configuration


def resolving(resolve: Callable[..., Any]) -> Callable[..., Any]:
    """Return what resolves one interpolation, and counts it where there is a budget."""

    @wraps(resolve)
    def resolved(*args: Any, **keys: Any) -> Any:
        budget = Budget.current
        if budget is None:
            return resolve(*args, **keys)
        budget.spend("interpolations")
        found = resolve(*args, **keys)
        value = found._value() if hasattr(found, "_value") else found
        budget.spend("characters by interpolation", len(value) if isinstance(value, str) else 0)
        return found

    return resolved
