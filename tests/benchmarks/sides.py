"""The loop as it is ours and as each peer has it: every side takes the same steps from the same x and returns their rows."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tensorflow as tf
import tensorflow_probability as tfp
from omegaconf import DictConfig, OmegaConf

from benchmarks.measure import Contender
from runner.config import build
from runner.trace import Trace

CONF = Path(__file__).parents[2] / "conf"
# So small that x is still on its way after a million steps: numbers below 1e-38, where an optimizer ends up that has arrived,
# are slow on this or that processor.
RATE = 1e-6
JAX_LOSSES = {
    "quadratic": lambda x: jnp.square(x - 4),
    "rosenbrock": lambda x: jnp.sum(100 * jnp.square(x[1:] - jnp.square(x[:-1])) + jnp.square(1 - x[:-1])),
}


class Cell(NamedTuple):
    """What is minimised, by which optimizer, in how many steps; dimension 0 is a scalar x."""

    loss: str
    dimension: int
    optimizer: str
    steps: int
    rate: float = RATE

    def __str__(self) -> str:
        """Name it as the table does."""
        shape = f"d = {self.dimension:,}" if self.dimension else "scalar"
        return f"{self.loss} {shape}, {self.optimizer}, {self.steps:,} steps"


def node(group: str, choice: str, **keys: Any) -> DictConfig:
    """Return a choice of conf/ with some of its keys set."""
    return OmegaConf.merge(OmegaConf.load(CONF / group / f"{choice}.yaml"), keys)


class Start:
    """Loss, x and optimizer as conf/ has them, and back where they began whenever asked."""

    def __init__(self, cell: Cell) -> None:
        loss = node("loss", cell.loss, **({"dimension": cell.dimension} if cell.dimension else {}))
        self.loss = build.named(OmegaConf.create({"loss": loss, "seed": 0}))
        self.x0 = build.guess(node("guess", "standard"), self.loss, "float32", 0)
        self.x = tf.Variable(self.x0)
        self.optimizer = build.optimizer(node("optimizer", cell.optimizer, learning_rate=cell.rate), self.x)
        self.state = [each.numpy() for each in self.optimizer.variables]

    def again(self) -> None:
        """Set x and the optimizer's state back."""
        self.x.assign(self.x0)
        for variable, value in zip(self.optimizer.variables, self.state, strict=True):
            variable.assign(value)


def ours(cell: Cell, execution: str, keep: Callable[[Trace], Any] = lambda rows: None) -> Contender:
    """Advance chunk by chunk, as the loop does, and hand each chunk on."""
    start = Start(cell)
    step = build.strategy(node("strategy", "tape"), start.loss, start.optimizer, start.x)
    program = build.execution(node("execution", execution), step)
    program.last()

    def prepare() -> None:
        start.again()
        program.restart()

    def run() -> None:
        left = cell.steps
        while left:
            rows = program.advance(min(left, program.chunk))
            left -= len(rows)
            keep(rows)

    return Contender(run, cell.steps, prepare)


def by_optax(cell: Cell, *, rate_as_input: bool = False) -> Contender:
    """Scan over the steps in one jitted function; the learning rate is a constant in it, or an input as it is of ours.

    `run` returns x, loss and gradient of every step.
    """
    keys = node("optimizer", cell.optimizer)
    constants = {"b1": keys.beta_1, "b2": keys.beta_2, "eps": keys.epsilon} if cell.optimizer == "adam" else {}
    make = getattr(optax, cell.optimizer)
    if rate_as_input:
        make = optax.inject_hyperparams(make, static_args=set(signature(make).parameters) - {"learning_rate"})
    optimizer, loss = make(learning_rate=cell.rate, **constants), jax.value_and_grad(JAX_LOSSES[cell.loss])

    def step(carry: Any, _: None) -> tuple[Any, Any]:
        x, state = carry
        y, gradient = loss(x)
        updates, state = optimizer.update(gradient, state, x)
        return (optax.apply_updates(x, updates), state), (x, y, gradient)

    @jax.jit
    def scan(x0: jax.Array, state: Any) -> tuple[Any, Any]:
        return jax.lax.scan(step, (x0, state), length=cell.steps)

    x0 = jnp.asarray(Start(cell).x0)
    state = optimizer.init(x0)
    return Contender(lambda: tuple(np.asarray(part) for part in scan(x0, state)[1]), cell.steps)


def by_tfp(cell: Cell) -> Contender:
    """Call `tfp.math.minimize`, which takes Keras's optimizers as they are; in a `tf.function`, or each call would compile it.

    `run` returns loss and gradient of every step, and the x after it.
    """
    start = Start(cell)

    @tf.function(jit_compile=True, autograph=False)
    def minimize() -> Any:
        return tfp.math.minimize(
            lambda: start.loss(start.x),
            num_steps=cell.steps,
            optimizer=start.optimizer,
            trainable_variables=[start.x],
            trace_fn=lambda seen: (seen.parameters[0], seen.loss, seen.gradients[0]),
            jit_compile=True,
        )

    return Contender(lambda: tuple(part.numpy() for part in minimize()), cell.steps, start.again)


def by_guide(cell: Cell) -> Contender:
    """Loop as Keras's guide "Writing a training loop from scratch in TensorFlow" does; `run` returns the last x."""
    start = Start(cell)

    def run() -> np.ndarray:
        for _ in range(cell.steps):
            with tf.GradientTape() as tape:
                loss = start.loss(start.x)
            gradients = tape.gradient(loss, [start.x])
            start.optimizer.apply(gradients, [start.x])
        return start.x.numpy()

    return Contender(run, cell.steps, start.again)
