"""A number that is not finite goes nowhere, and the same run has the same bits."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from conftest import CONF, environment
from hydra import compose, initialize_config_dir

from runner import config, experiment
from runner.loop import Ending
from runner.trace import join


@pytest.fixture(scope="module")
def composed() -> Iterator[Callable[..., Any]]:
    """Give a function that composes a configuration from overrides."""
    config.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield lambda *words: compose("config", ["tracking=none", *words])


@pytest.mark.parametrize("execution", ["eager", "graph", "xla"])
def test_a_gradient_that_is_not_finite_leaves_x_where_it_is(composed, execution):
    # x - 4 doubles and changes its sign in each step: its square overflows first, beyond 2**64, and x is finite yet.
    cfg = composed("optimizer.learning_rate=1.5", "max_iterations=300", f"execution={execution}")
    ready, rows = experiment.built(cfg), []
    result = experiment.steps(ready, [rows.append])
    assert (result.ending, result.stopped_by) == (Ending.DIVERGED, "nonfinite_loss")
    assert np.isfinite(result.x) and result.x == result.last.x[0] == ready.program.x.numpy()
    assert np.isfinite(join(rows)[:-1].loss).all()


def test_an_x_that_is_not_finite_gives_way_to_the_one_before(composed):
    cfg = composed("optimizer.learning_rate=3e38", "guess=point", "guess.x=100", "max_iterations=5")
    ready, rows = experiment.built(cfg), []
    result = experiment.steps(ready, [rows.append])
    assert result.ending is Ending.DIVERGED and result.iterations == 1 and not np.isfinite(result.last.x[0])
    assert result.x == ready.program.x.numpy() == 100


DIGEST = (
    "import sys, tensorflow as tf; from runner import config, experiment; from hydra import compose, initialize_config_dir\n"
    "from runner.trace import join\nconfig.register()\n"
    "with initialize_config_dir(sys.argv[1], version_base='1.3'):\n    cfg = compose('config', sys.argv[2:])\n"
    "ready, rows = experiment.built(cfg), []\nexperiment.steps(ready, [rows.append])\n"
    "from tensorflow.python.framework import config as switches\n"
    "print(switches.is_op_determinism_enabled(), join(rows).x.tobytes().hex())\n"
)


def test_a_deterministic_run_has_the_same_bytes_in_another_process():
    words = ["tracking=none", "deterministic=true", "loss=mlp", "loss.batch_size=32", "optimizer=adam", "max_iterations=20"]
    command = [sys.executable, "-c", DIGEST, str(CONF), *words]
    printed = [subprocess.run(command, env=environment(), capture_output=True, text=True, check=True).stdout for _ in range(2)]
    switched, found = printed[0].split()
    assert switched == "True" and len(set(printed)) == 1
    assert len(found) > 20
