"""From a node of a configuration to the function or the object that its `_target_` names; misfits are one line each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Any

from omegaconf import DictConfig

from runner.errors import UserError, nearest
from runner.security import targets as allow


def function(path: str, node: Any, *called_with: str, **offered: Any) -> partial[Any]:
    """Return the function that a node's `_target_` names, with the node's other keys bound.

    `called_with` names what it will be called with; of `offered` it gets what its signature asks for and the node lacks.

    Raises UserError where there is no such function, or a key is none of its arguments, or an argument is missing.
    """
    node = allow.plain(path, node)
    keys, target = arguments(node), function_of(path, node)
    asked = inspect.signature(target).parameters
    keys |= {name: value for name, value in offered.items() if name in asked and keys.get(name) is None}
    faults = list(misfits(path, target, keys, called_with))
    if faults:
        raise UserError("; ".join(faults))
    return partial(target, **keys)


def function_of(path: str, node: Mapping[str, Any] | DictConfig) -> Callable[..., Any]:
    """Return what a node's `_target_` names."""
    name = node.get("_target_")
    target = allow.target(f"{path}._target_", name)
    if not callable(target):
        raise UserError(f"{path}._target_ must name a function or a class, got {name!r}, which is a {type(target).__name__}")
    return target


def arguments(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return a node's keys without those that are Hydra's."""
    return {str(key): value for key, value in node.items() if not str(key).startswith("_")}


def misfits(path: str, target: Callable[..., Any], keys: dict[str, Any], called_with: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield what in these keys the target's signature does not allow."""
    parameters = inspect.signature(target).parameters.values()
    # Keras's models take anything, to choose by it what they are.
    anything = any(each.kind is each.VAR_POSITIONAL for each in parameters)
    if not any(each.kind is each.VAR_KEYWORD for each in parameters) or (is_keras(target) and not anything):
        known = [each.name for each in parameters if each.kind is not each.VAR_KEYWORD][len(called_with) :]
        for key in keys.keys() - set(known):
            yield f"{path}.{key} is no argument of {target.__name__}; {nearest(key, known)}"
    for each in list(parameters)[len(called_with) :]:
        named = each.kind in (each.KEYWORD_ONLY, each.POSITIONAL_OR_KEYWORD)
        if named and each.default is each.empty and each.name not in keys:
            yield f"{path}.{each.name} must be given, for {target.__name__} has no default; set it with +{path}.{each.name}=…"


def is_keras(target: Any) -> bool:
    """Tell whether a target takes `**kwargs` only to refuse them, as Keras's optimizers do."""
    return target.__module__.startswith("keras.")


def unfit(path: str, node: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with a node and the nodes within it that have a `_target_` of their own."""
    yield from misfits(path, function_of(path, node), arguments(node))
    for key, each in node.items():
        if isinstance(each, dict) and "_target_" in each:
            yield from unfit(f"{path}.{key}", each)


def made(path: str, node: Mapping[str, Any]) -> Any:
    """Return what a node and those within it name, all of which has to be allowed."""
    return allow.made(path, floats(node))


def floats(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return a node's keys with whole numbers made floats wherever the default is one; Keras refuses `learning_rate=1`."""
    defaults = float_defaults(node["_target_"])

    def coerced(key: str, value: Any) -> Any:
        if isinstance(value, dict) and "_target_" in value:
            return floats(value)
        return float(value) if type(value) is int and key in defaults else value

    return {str(key): coerced(str(key), value) for key, value in node.items()}


@cache
def float_defaults(target: str) -> frozenset[str]:
    """Return which arguments of what this path names are real numbers by default."""
    parameters = inspect.signature(allow.target("_target_", target)).parameters.values()
    return frozenset(each.name for each in parameters if type(each.default) is float)
