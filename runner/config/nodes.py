"""Return the function or the object that a node's `_target_` names; each misfit is reported in one line."""

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

    `called_with` names the positional arguments of the later call. From `offered` the function gets each argument that its
    signature has and that the node leaves out or sets to null.

    Raises UserError if there is no such function, a key is not one of its arguments, or an argument is missing.
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
    """Return the function or class that a node's `_target_` names; raises UserError if it is not callable."""
    name = node.get("_target_")
    target = allow.target(f"{path}._target_", name)
    if not callable(target):
        raise UserError(f"{path}._target_ must name a function or a class, got {name!r}, which is a {type(target).__name__}")
    return target


def arguments(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return a node's keys without Hydra's, which begin with `_`."""
    return {str(key): value for key, value in node.items() if not str(key).startswith("_")}


def misfits(path: str, target: Callable[..., Any], keys: dict[str, Any], called_with: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield an error for each key that the target's signature does not accept, and for each required key that is missing."""
    parameters = inspect.signature(target).parameters.values()
    # Keras's models accept any arguments: the arguments decide which kind of model is made.
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
    """Return whether a target is Keras's: Keras's optimizers accept `**kwargs` only to refuse them."""
    return target.__module__.startswith("keras.")


def unfit(path: str, node: Mapping[str, Any]) -> Iterator[str]:
    """Yield the errors of a node's keys, and of the keys of each nested node with a `_target_`."""
    yield from misfits(path, function_of(path, node), arguments(node))
    for key, each in node.items():
        if isinstance(each, dict) and "_target_" in each:
            yield from unfit(f"{path}.{key}", each)


def made(path: str, node: Mapping[str, Any]) -> Any:
    """Return the object that a node and its nested nodes name; each `_target_` must be allowed."""
    return allow.made(path, floats(node))


def floats(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return a node's keys, an integer as a float if the argument's default is a float: Keras refuses `learning_rate=1`."""
    defaults = float_defaults(node["_target_"])

    def coerced(key: str, value: Any) -> Any:
        if isinstance(value, dict) and "_target_" in value:
            return floats(value)
        return float(value) if type(value) is int and key in defaults else value

    return {str(key): coerced(str(key), value) for key, value in node.items()}


@cache
def float_defaults(target: str) -> frozenset[str]:
    """Return the names of the target's arguments whose default is a float."""
    parameters = inspect.signature(allow.target("_target_", target)).parameters.values()
    return frozenset(each.name for each in parameters if type(each.default) is float)
