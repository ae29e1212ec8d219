"""Build the objects that a configuration's nodes name; objects that do not fit are reported before the first step."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Hashable, Iterator, Mapping
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from omegaconf import DictConfig, OmegaConf

from runner import optimizers, strategies
from runner.config.nodes import float_defaults, function, function_of, made, unfit
from runner.errors import UserError, first_line
from runner.loop import FULL, Rules
from runner.losses import Loss
from runner.security import targets as allow
from runner.system import forks

# The groups that build the loss, from the inside out.
OF_LOSS = ("loss", "instance", "noise")
LIBRARIES = ("runner.", "keras.", "tf_keras.", "tensorflow.")


def loss(cfg: DictConfig) -> Loss:
    """Return the loss that the run minimises: the instance of the `loss` group, with its noise."""
    return function("noise", cfg.noise, "of", seed=cfg.seed)(noiseless(cfg))


def noiseless(cfg: DictConfig) -> Loss:
    """Return the instance of the `loss` group, without noise."""
    return function("instance", cfg.instance, "of")(named(cfg))


def named(cfg: DictConfig) -> Loss:
    """Return the loss at its dimension. If the function declares no dimension, the node may give one."""
    node = allow.plain("loss", cfg.loss)
    dimension = node.pop("dimension", None)
    bound = function("loss", node, "x", seed=cfg.seed)
    bound = partial(forks.ended(bound.func), **bound.keywords | parts(node, cfg))
    if dimension is not None and (not isinstance(dimension, int) or dimension < 0):
        raise UserError(f"loss.dimension must be a whole number of 0 (x is a scalar) or more, got {dimension!r}")
    try:
        return Loss.of(bound, dimension)
    except ValueError as error:
        raise UserError(str(error)) from error


def parts(loss: Mapping[str, Any], cfg: DictConfig) -> dict[str, Any]:
    """Return the objects of the loss's nested nodes: its data, or a Keras model whose initial weights the run's seed draws."""
    nodes = {key: each for key, each in loss.items() if isinstance(each, dict) and "_target_" in each}
    faults = [fault for key, each in nodes.items() for fault in unfit(f"loss.{key}", each)]
    if faults:
        raise UserError("; ".join(faults))
    if nodes:
        keras.config.set_floatx(cfg.dtype.name)
        keras.utils.set_random_seed(cfg.seed)
    found = {}
    for key, each in nodes.items():
        # The dtype of layers: Keras derives its default from floatx only once per process.
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(cfg.dtype.name)
        try:
            found[key] = made(f"loss.{key}", each)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"loss.{key}: {first_line(error)[:300]}") from error
        finally:
            keras.config.set_dtype_policy(before)
    return found


def guess(node: DictConfig, loss: Loss, dtype: str, seed: int) -> np.ndarray:
    """Return the initial guess, the first x."""
    return function("guess", node, "loss", "dtype", "seed")(loss, dtype, seed)


def optimizer(node: DictConfig, x: tf.Variable, prepare: Callable[[Any], None] = lambda _: None) -> Any:
    """Return a new optimizer, built for x; `prepare` is called with it after its constructor and before it is built.

    Raises UserError that names every key that is not an argument of the optimizer or of a schedule within it.
    """
    plain = allow.plain("optimizer", node)
    if faults := list(unfit("optimizer", plain)):
        raise UserError("; ".join(faults))
    try:
        optimizers.set_floatx(x.dtype.name)
        new = made("optimizer", plain)
        prepare(new)
        return optimizers.ready(new, x)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"optimizer: {first_line(error)}") from error


def strategy(node: DictConfig, loss: Loss, optimizer: Any, x: tf.Variable) -> Any:
    """Return the strategy's Step; raises Incompatible if the strategy does not fit the loss or the optimizer."""
    bound = function("strategy", node, "loss", "optimizer", "x")
    strategies.fit(bound.func, loss, optimizer)
    return bound(loss, optimizer, x)


def execution(node: DictConfig, step: Any) -> Any:
    """Return the execution of a Step."""
    if node.get("chunk") is not None and not node.chunk >= 1:
        raise UserError(f"execution.chunk must be 1 or more steps, got {node.chunk!r}; set it with execution.chunk=1000")
    return function("execution", node, "step")(step)


def in_python(node: DictConfig) -> bool:
    """Return whether an execution calls the loss as plain Python in each step."""
    return getattr(function_of("execution", node), "in_python", False)


def of_the_user(cfg: DictConfig) -> bool:
    """Return whether the loss, or any of its parts, is the user's own code."""
    return any(not name.startswith(LIBRARIES) for group in OF_LOSS for name in targets(OmegaConf.to_container(cfg[group])))


def targets(plain: Any) -> Iterator[str]:
    """Yield each `_target_` of a node and of the nodes within it."""
    if isinstance(plain, dict):
        yield from (str(value) for key, value in plain.items() if key == "_target_")
        yield from (name for value in plain.values() for name in targets(value))
    elif isinstance(plain, list):
        yield from (name for value in plain for name in targets(value))


def depends_on(cfg: DictConfig, loss: Loss) -> Hashable:
    """Return the key of a compiled program. It leaves out the guess, the limits and a learning rate that is a number."""
    parts: dict[str, Any] = {}
    for name in (*OF_LOSS, "optimizer", "strategy", "execution"):
        parts[name] = OmegaConf.to_container(cfg[name], resolve=True)
    if not isinstance(parts["optimizer"].get("learning_rate"), dict):
        parts["optimizer"].pop("learning_rate", None)
    return json.dumps(parts), *(function_of(name, cfg[name]) for name in OF_LOSS), cfg.dtype, loss.seed


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Return, as resolved plain values, the keys that determine a run's rows and their number."""
    groups = (*OF_LOSS, "guess", "optimizer", "strategy", "execution", "stopping")
    found: dict[str, Any] = {name: OmegaConf.to_container(cfg[name], resolve=True) for name in groups}
    return found | {"max_iterations": cfg.max_iterations, "seed": cfg.seed, "dtype": cfg.dtype.name}


def numbers(keys: Mapping[str, Any]) -> dict[str, float]:
    """Return an optimizer's real hyperparameters as floats. An integer is one of them if the argument's default is a float."""
    defaults = float_defaults(keys["_target_"])
    return {
        name: float(value) for name, value in keys.items() if type(value) is float or (type(value) is int and name in defaults)
    }


def rules(node: DictConfig, loss: Loss, max_iterations: int) -> Rules:
    """Return the active stopping rules and the limits."""
    limit = node.get("time_limit")
    if limit is not None and not (isinstance(limit, int | float) and limit > 0):
        raise UserError(f"stopping.time_limit must be a number of seconds above 0, got {limit!r}; set stopping.time_limit=60")
    found, full = {}, None if loss.seed is None else full_loss(loss)
    for name in (name for name in node if name != "time_limit"):
        by_full = "full_loss" in inspect.signature(function_of(f"stopping.{name}", node[name])).parameters
        if by_full and loss.seed is not None and full is None:
            raise UserError(
                f"stopping.{name} compares the full_loss of a random loss, and this one measures none; declare it by "
                "@known(…, random=True, measures={'full_loss': …}), or set stopping=limit"
            )
        # The loss of a single random step may be below the minimum by chance.
        minimum = loss.minimum if loss.seed is None or by_full else None
        found[name] = function(f"stopping.{name}", node[name], "trace", "start", minimum=minimum, full_loss=full)
    look_back = max((getattr(rule.func, "look_back", lambda **_: 0)(**rule.keywords) for rule in found.values()), default=0)
    return Rules(found, look_back, max_iterations, limit)


def full_loss(loss: Loss) -> Callable[[np.ndarray], float] | None:
    """Return a random loss's full loss as a function from one x to a number; None if the loss declares no such measure."""
    measure = loss.measures.get(FULL)
    return None if measure is None else lambda x: float(measure(tf.constant(x)))
