"""Bound the size of a composed configuration before it is resolved: an interpolation can repeat others many times."""

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

# Maximum number of values in a composed configuration, of resolved interpolations, and of characters that these yield.
BOUNDS = {"values": 2 * VALUES, "interpolations": INTERPOLATIONS, "characters by interpolation": BYTES}


class Exceeded(BaseException):
    """A bound of a composed configuration is exceeded; not an Exception, which OmegaConf would treat as its own error."""


class Budget:
    """The rest of each bound while a configuration is composed and resolved."""

    current: Budget | None = None

    def __init__(self) -> None:
        self.left = dict(BOUNDS)

    def spend(self, what: str, number: int = 1) -> None:
        """Subtract `number` from the rest of a bound; raises Exceeded if the bound is exceeded."""
        self.left[what] -= number
        if self.left[what] < 0:
            raise Exceeded(f"a configuration must come to {BOUNDS[what]} {what} or less, with every interpolation written out")

    def walk(self, node: Any, level: int = 0) -> None:
        """Count a node's values, interpolations followed; one that cannot be resolved is reported later, where it is used."""
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
    """Set a budget for all that is resolved in this block; raises UserError if the budget is exceeded."""
    before, Budget.current = Budget.current, Budget()
    try:
        yield Budget.current
    except Exceeded as error:
        raise UserError(str(error)) from error
    finally:
        Budget.current = before


def expandable(cfg: Any) -> None:
    """Raise UserError for a composed configuration that exceeds a bound when its interpolations are resolved."""
    # Cached resolvers (a time, a process id) must be evaluated when they are first needed, so this walk leaves no cache.
    cache = copy.deepcopy(OmegaConf.get_cache(cfg))
    with limited() as budget:
        budget.walk(cfg)
    OmegaConf.set_cache(cfg, cache)


def guard() -> None:
    """Patch Hydra and OmegaConf so that they count what they compose and resolve."""
    for owner, name, by in (
        (ConfigLoaderImpl, "load_configuration", composing),
        (Container, "_resolve_node_interpolation", resolving),
        (Container, "_evaluate_custom_resolver", resolving),
    ):
        original = getattr(owner, name)
        # Other guards wrap the same function.
        if not getattr(original, "is_counted", False):
            counted = by(original)
            setattr(counted, "is_counted", True)
            setattr(owner, name, counted)


def composing(load: Callable[..., Any]) -> Callable[..., Any]:
    """Return a `load_configuration` that composes within the bounds and remembers the configuration's secrets."""

    @wraps(load)
    def load_configuration(*args: Any, **keys: Any) -> Any:
        with limited():
            cfg = load(*args, **keys)
        expandable(cfg)
        secrets.learn(OmegaConf.to_container(cfg))
        # A folder's name may hold the overrides. An override that cannot be resolved is reported later, where its key is read.
        with suppress(OmegaConfBaseException), read_write(cfg.hydra.job):
            cfg.hydra.job.override_dirname = secrets.masked(cfg.hydra.job.override_dirname).replace(secrets.MASK, "hidden")
        return cfg

    return load_configuration


def resolving(resolve: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that resolves one interpolation, and counts it if there is a budget."""

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
