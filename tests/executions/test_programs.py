"""A program that is used again does what a new one would, and traces nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from conftest import CONF
from omegaconf import OmegaConf

from runner.config import build
from runner.executions import cache
from runner.executions.cache import Program, Programs
from runner.losses import Loss, rosenbrock

OPTIMIZERS = {path.stem: OmegaConf.load(path) for path in sorted((CONF / "optimizer").glob("*.yaml"))}
KEPT = {name: node for name, node in OPTIMIZERS.items() if str(node.get("_target_")).startswith("keras.")}
XLA = OmegaConf.load(CONF / "execution" / "xla.yaml")
TAPE = OmegaConf.load(CONF / "strategy" / "tape.yaml")


def program(kept: Programs, node: Any, x0: list[float], rate: float, counted: list[int] | None = None) -> Program:
    """Return the program of an optimizer on Rosenbrock's function; each time that the loss is traced is counted."""

    def loss(x: tf.Tensor) -> tf.Tensor:
        if counted is not None:
            counted[0] += 1
        return rosenbrock(x)

    x = tf.Variable(tf.constant(x0))
    optimizer = build.optimizer(OmegaConf.merge(node, {"learning_rate": rate}), x)
    step = lambda: build.strategy(TAPE, Loss(loss, (2,)), optimizer, x)  # noqa: E731
    return kept.get(node._target_, x, optimizer, lambda: build.execution(XLA, step()))


def rows(of: Program, n: int):
    """Return n rows and the last one."""
    of.execution.last()
    return of.execution.advance(n), of.execution.last()


@pytest.mark.parametrize("name", KEPT)
def test_a_second_job_is_bit_for_bit_what_it_is_alone_and_traces_nothing(name):
    kept, counted = Programs(), [0]
    first = program(kept, KEPT[name], [-1.2, 1.0], 0.02, counted)
    rows(first, 30)
    traces = counted[0]
    assert traces > 0
    second = program(kept, KEPT[name], [0.5, -0.25], 0.005, counted)
    assert second is first
    used, alone = rows(second, 20), rows(program(Programs(), KEPT[name], [0.5, -0.25], 0.005), 20)
    assert counted[0] == traces
    for mine, new in zip(used, alone, strict=True):
        assert mine.start == new.start
        np.testing.assert_array_equal(mine.x, new.x)
        np.testing.assert_array_equal(mine.loss, new.loss)
        np.testing.assert_array_equal(mine.gradient, new.gradient)
    # The jobs differ, so equality is not that of constants.
    assert not np.array_equal(used[0].x[0], np.float32([-1.2, 1.0]))


def test_jobs_of_one_process_share_a_program_only_where_they_may(cli, runs, monkeypatch):
    from runner import experiment

    monkeypatch.setattr(experiment, "PROGRAMS", cache.Programs())
    cli("-m", "optimizer.learning_rate=0.1,0.2", "guess=point", "guess.x=1,2", "max_iterations=3,300")
    assert len(experiment.PROGRAMS.kept) == 1 and len(runs()) == 8
    # x_1 = 4 + (x_0 - 4)(1 - 2 lr) tells that guess and rate were each job's own.
    for run in runs():
        x0, rate, n = (float(run.data.params[key]) for key in ("guess.x", "optimizer.learning_rate", "max_iterations"))
        assert run.data.metrics["x"] == pytest.approx(4 + (x0 - 4) * (1 - 2 * rate) ** n, rel=1e-6)
    cli("-m", "optimizer.momentum=0.5,0.6", "max_iterations=3")
    cli("dtype=float64", "max_iterations=3")
    cli("optimizer/learning_rate=cosine_decay", "max_iterations=3")
    assert len(experiment.PROGRAMS.kept) == 5


def test_the_program_used_longest_ago_goes_first(monkeypatch):
    monkeypatch.setattr(cache, "KEPT", 2)
    kept = Programs()
    one, two = program(kept, KEPT["sgd"], [1.0, 1.0], 0.1), program(kept, KEPT["adam"], [1.0, 1.0], 0.1)
    assert program(kept, KEPT["sgd"], [1.0, 1.0], 0.1) is one
    program(kept, KEPT["lion"], [1.0, 1.0], 0.1)
    assert program(kept, KEPT["sgd"], [1.0, 1.0], 0.1) is one
    assert program(kept, KEPT["adam"], [1.0, 1.0], 0.1) is not two


@pytest.mark.parametrize(
    ("flags", "kernels"), [("", 1), ("--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold=1024", 0)]
)
def test_a_loop_of_a_hundred_numbers_is_one_kernel_unless_the_user_says_otherwise(tmp_path, flags, kernels):
    code = """
        import os
        import tensorflow as tf
        from conftest import CONF
        from omegaconf import OmegaConf
        from test_programs import OPTIMIZERS, Programs, program
        made = program(Programs(), OPTIMIZERS["adam"], [0.0] * 100, 0.1)
        made.execution.last()
        print(os.environ["XLA_FLAGS"])
    """
    tests = CONF.parent / "tests"
    own = {"XLA_FLAGS": f"--xla_dump_to={tmp_path} {flags}".strip(), "PYTHONPATH": f"{tests}:{tests / 'executions'}"}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == own["XLA_FLAGS"]
    (loop,) = tmp_path.glob("*inference_loop*after_optimizations.txt")
    assert loop.read_text().count('xla_cpu_small_call="true"') == kernels
