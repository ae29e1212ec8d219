"""Any composition either runs to an ending or is refused in one line; no traceback, and no run that goes on for ever."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from conftest import CONF
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ENDINGS = {"iteration_limit", "converged", "time_limit", "diverged"}
GROUPS = ("loss", "instance", "noise", "guess", "optimizer", "strategy", "execution", "stopping", "optimizer/learning_rate")
# Losses of data take seconds to prepare, and are not another case.
DEAR = {"keras_model", "lasso_smooth", "linear_regression", "logistic_regression", "matrix_factorization", "mlp"}
DEAR |= {"poisson_regression", "ridge", "softmax_regression", "svm_squared_hinge"}
CHOICES = st.one_of(
    *(
        st.sampled_from(sorted({path.stem for path in (CONF / group).glob("*.yaml")} - DEAR)).map(f"{group}={{}}".format)
        for group in GROUPS
    )
)
KEYS = """optimizer.learning_rate optimizer.momentum +optimizer.beta_1 optimizer.clipnorm optimizer.nesterov optimizer.use_ema
    optimizer._target_ loss.dimension +loss.dimension loss._target_ guess.x +guess.x +guess.low strategy.persistent
    strategy.watch execution.chunk stopping.time_limit +stopping.plateau.patience +stopping.gradient_norm.tolerance
    tracking.every tracking.max_coordinates tracking.name tracking.full_loss_every report.points seed dtype +noise.gradient
    max_iterations +mine hydra.job.name optimizer loss stopping"""
WORDS = """null true false [] {} [1,2] [1.5] {a:1} {_target_:os.system} ${seed} ${nowhere} ??? '' word float64
    runner.losses.sphere keras.optimizers.Adam os.system 1e400"""
VALUES = st.one_of(
    st.integers(-3, 50).map(str),
    st.floats(width=32).map(str),
    st.sampled_from(WORDS.split()),
)
OVERRIDES = st.lists(
    st.one_of(CHOICES, st.builds("{}={}".format, st.sampled_from(KEYS.split()), VALUES)), min_size=1, max_size=4
)


@pytest.mark.parametrize("examples", [5, pytest.param(400, marks=pytest.mark.long)])
def test_whatever_is_typed_ends_or_is_told_in_one_line(cli, runs, examples):
    seen = 0

    @settings(max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(OVERRIDES)
    def hold(words):
        nonlocal seen
        # One run after another records in one process, as in a sweep.
        ended = cli("max_iterations=3", "report=none", *words)
        told = ended.out + ended.err
        assert "Traceback" not in told, (words, told)
        found = runs()
        new, seen = found[seen:], len(found)
        assert ended.code in (0, 1), (words, ended)
        if ended.code:
            lines = [line for line in ended.err.splitlines() if line.startswith("error: ")]
            assert len(lines) == 1 and len(lines[0]) > len("error: "), (words, ended.err)
        assert {run.info.status for run in new} <= {"FINISHED", "FAILED"}, words
        assert {run.data.tags["ending"] for run in new if run.info.status == "FINISHED"} <= ENDINGS, words
        assert len(new) == 1 or ended.code == 1 or "hydra.mode" in str(words), (words, ended)

    hold()


@pytest.mark.parametrize("examples", [25, pytest.param(2000, marks=pytest.mark.long)])
def test_whatever_is_written_in_a_file_is_counted_or_refused(examples):
    from runner.errors import UserError
    from runner.security import yaml_limits

    @settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    @given(st.text("ab:[]{}&*-, \n\t'\"!?|>#%é\x00", max_size=200) | st.binary(max_size=60))
    def hold(content):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "any.yaml")
            path.write_bytes(os.fsencode(content) if isinstance(content, str) else content)
            try:
                yaml_limits.checked(path)
            except UserError as error:
                assert str(path) in str(error) and "\n" not in str(error)

    hold()
