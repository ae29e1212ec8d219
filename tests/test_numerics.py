"""A number that is not finite goes nowhere, and the same run has the same bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import WARM
from conftest import CONF
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


def write(file: Path, words: list[str]) -> None:
    """Run what is composed of these words, and write to a file the bytes of every x."""
    from tensorflow.python.framework import config as switches

    config.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        ready, rows = experiment.built(compose("config", words)), []
    experiment.steps(ready, [rows.append])
    assert switches.is_op_determinism_enabled()
    file.write_bytes(join(rows).x.tobytes())


def test_a_deterministic_run_has_the_same_bytes_in_another_process(tmp_path):
    words = ["tracking=none", "deterministic=true", "loss=mlp", "loss.batch_size=32", "optimizer=adam", "max_iterations=20"]
    files = [tmp_path / "one", tmp_path / "other"]
    for process in [WARM.Process(target=write, args=(file, words)) for file in files]:
        process.start()
        process.join()
        assert process.exitcode == 0
    one, other = (file.read_bytes() for file in files)
    assert one == other and len(one) > 20
