"""Losses whose x is several tensors, and the optimizers that depend on where one ends: these are refused."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import CONF
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from runner import optimizers
from runner.config import build, nodes, schema
from runner.errors import Incompatible

LOSSES = [path.stem for path in sorted((CONF / "loss").glob("*.yaml"))]
OPTIMIZERS = [path.stem for path in sorted((CONF / "optimizer").glob("*.yaml")) if path.stem not in ("none", "custom")]
# Those of a matrix with its biases, of vectors alone, and of one matrix.
PARTS = ([(3, 2), (2,)], [(3,), (2,)], [(4, 3)])
CLIPPED = {"": {}, "norm": {"clipnorm": 0.5}, "global": {"global_clipnorm": 0.5}, "value": {"clipvalue": 0.1}}


@cache
def composed(*overrides: str) -> Any:
    schema.register()
    with initialize_config_dir(str(CONF), version_base=None):
        return compose("config", overrides=list(overrides))


@cache
def parts(loss: str) -> tuple[tuple[int, ...], ...]:
    return build.loss(composed(f"loss={loss}")).parts


def node_of(optimizer: str) -> dict[str, Any]:
    node = OmegaConf.to_container(OmegaConf.load(CONF / f"optimizer/{optimizer}.yaml"))
    assert isinstance(node, dict)
    return {str(key): value for key, value in node.items()}


def gradients(shapes: list[tuple[int, ...]]) -> Iterator[list[np.ndarray]]:
    """Yield the gradients of some steps, in which now this tensor's is the largest, now that one's."""
    for k in range(5):
        drawn = [np.random.default_rng([k, i]).normal(size=shape) for i, shape in enumerate(shapes)]
        yield [(each * 10.0 ** (k * (i + 1) % 3)).astype("float32") for i, each in enumerate(drawn)]


def stepped(node: Any, shapes: list[tuple[int, ...]]) -> np.ndarray:
    """Return where the steps of these gradients lead when each tensor is a variable of its own, as in `fit`."""
    draw = np.random.default_rng(0)
    variables = [keras.Variable(draw.normal(size=shape).astype("float32"), name=f"v{i}") for i, shape in enumerate(shapes)]
    optimizer = nodes.made("optimizer", node)
    optimizer.build(variables)
    for drawn in gradients(shapes):
        optimizer.apply_gradients(zip(map(tf.constant, drawn), variables, strict=True))
    return np.concatenate([np.ravel(np.asarray(each.value)) for each in variables])


def flat(node: Any, shapes: list[tuple[int, ...]]) -> np.ndarray:
    """Return where the same steps lead when all tensors are one vector."""
    draw = np.random.default_rng(0)
    x0 = np.concatenate([np.ravel(draw.normal(size=shape)) for shape in shapes])
    x = tf.Variable(tf.constant(x0, tf.float32), name="x")
    optimizer = optimizers.ready(nodes.made("optimizer", node), x)
    for drawn in gradients(shapes):
        optimizer.apply_gradients([(tf.constant(np.concatenate([np.ravel(each) for each in drawn])), x)])
    return x.numpy()


@pytest.mark.parametrize(("name", "clip"), [*((each, "") for each in OPTIMIZERS), *(("sgd", each) for each in CLIPPED if each)])
def test_an_optimizer_is_refused_if_and_only_if_its_steps_are_others_by_tensor(name: str, clip: str) -> None:
    node = node_of(name)
    node = OmegaConf.create(
        node | {key: value for key, value in {"learning_rate": 0.1, **CLIPPED[clip]}.items() if key in node}
    )
    for shapes in PARTS:
        same = np.allclose(stepped(node, shapes), flat(node, shapes), rtol=1e-5, atol=1e-6)
        optimizer = nodes.made("optimizer", node)
        try:
            optimizers.fit(optimizer, shapes)
            refused = ""
        except Incompatible as misfit:
            refused = str(misfit)
        assert same == (not refused), (shapes, refused)
        assert not refused or ("set optimizer" in refused and "\n" not in refused)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_tensors_of_a_loss_are_as_many_numbers_as_its_x(loss: str) -> None:
    found = parts(loss)
    if found:
        assert (sum(map(math.prod, found)),) == build.loss(composed(f"loss={loss}")).shape


def test_losses_with_weight_matrices_declare_them() -> None:
    having = {loss for loss in LOSSES if any(len(shape) > 1 for shape in parts(loss))}
    assert having >= {"mlp", "keras_model", "softmax_regression", "matrix_factorization"}


def test_a_turned_instance_has_no_tensors_left() -> None:
    turned = build.loss(composed("loss=softmax_regression", "loss/data=iris", "instance=random"))
    moved = build.loss(composed("loss=softmax_regression", "loss/data=iris", "instance=random", "instance.rotation=false"))
    noisy = build.loss(composed("loss=softmax_regression", "loss/data=iris", "noise=gaussian"))
    assert turned.parts == () and moved.parts == noisy.parts == ((4, 3), (3,))


def test_a_sweep_skips_what_would_be_another_optimizer_and_says_why(cli, runs) -> None:
    words = ("loss=softmax_regression", "loss/data=iris", "max_iterations=2")
    ended = cli("-m", *words, "optimizer=adam,muon,lamb,adafactor")
    assert ended.code == 0 and ended.out.count("skipped, optimizer ") == 3, ended.out
    assert [run.data.tags["optimizer"] for run in runs()] == ["adam"]
    ended = cli(*words, "optimizer=sgd", "optimizer.clipnorm=1.0")
    assert ended.code == 1 and ended.err.count("\n") == 1
    assert "optimizer.clipnorm=1 clips the gradient of each tensor" in ended.err and "optimizer.global_clipnorm=1" in ended.err
    assert cli(*words, "optimizer=sgd", "optimizer.global_clipnorm=1.0").code == 0
    # The same classes by another way.
    ended = cli(*words, "optimizer=custom", "optimizer._target_=keras.optimizers.Muon")
    assert ended.code == 1 and "optimizer Muon treats each matrix as a whole" in ended.err


@pytest.mark.parametrize("path", sorted(CONF.glob("experiment/study_*.yaml")), ids=lambda path: path.stem)
def test_no_study_ranks_an_optimizer_on_a_loss_whose_tensors_it_does_not_see(path: Any) -> None:
    swept = OmegaConf.load(path).hydra.sweeper.params
    names = [str(swept.get(group, "")).split(",") for group in ("loss", "optimizer")]
    for loss, optimizer in itertools.product(*names):
        if loss and (found := parts(loss)):
            optimizers.fit(nodes.made("optimizer", OmegaConf.create(node_of(optimizer))), found)
