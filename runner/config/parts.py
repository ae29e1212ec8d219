"""Build the parts of a run from a configuration."""

from __future__ import annotations

import time
from typing import Any

import keras
import tensorflow as tf

from runner import experiment
from runner.config import build
from runner.experiment import Parts
from runner.system import signals
from runner.trace import Execution


def parts(cfg: Any) -> Parts:
    """Build the parts that a configuration names, and evaluate the first point, which compiles the program.

    Raises UserError for parts that do not fit together.
    """
    dtype = cfg.dtype.name
    if cfg.deterministic:
        tf.config.experimental.enable_op_determinism()
    keras.config.set_floatx(dtype)
    keras.utils.set_random_seed(cfg.seed)

    loss = build.loss(cfg)
    x0 = build.guess(cfg.guess, loss, dtype, cfg.seed)
    x = tf.Variable(tf.constant(x0), name="x")
    optimizer = build.optimizer(cfg.optimizer, x)
    rules = build.rules(cfg.stopping, loss, cfg.max_iterations)

    def make() -> Execution:
        step = build.strategy(cfg.strategy, loss, optimizer, x)
        return build.execution(cfg.execution, step)

    began = time.perf_counter()
    program = experiment.PROGRAMS.get((build.depends_on(cfg, loss), x0.shape), x, optimizer, make)
    with signals.after():
        rules.stop(program.execution.last(), 0)
    return Parts(loss, x0, rules, program, time.perf_counter() - began)
