"""An interrupted group goes on from its checkpoint bit for bit, and what the store did not take of a batch is sent later."""

from __future__ import annotations

import copy
import shutil
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import keras
import numpy as np
import processes
import proxy
import pyarrow.parquet as pq
import pytest
import servers
from conftest import CONF, history, store
from hydra import compose, initialize_config_dir
from mlflow import MlflowClient
from omegaconf import OmegaConf

from runner import checkpoints, config, fused, group_checkpoints, groups, sync, sweep_runs
from runner.errors import UserError
from runner.loop import Ending, Result
from runner.programs import Programs
from runner.trace import Trace

Ended = list[tuple[Trace, Result]]
STEPS, CHUNK = 40, 7
GROUPS = {
    "sgd": ["optimizer.learning_rate=0.001", "execution=graph"],
    "adam": ["optimizer=adam"],
    "float64": ["optimizer=adam", "dtype=float64"],
    "schedule": ["optimizer=adam", "optimizer/learning_rate=cosine_decay", "optimizer.learning_rate.decay_steps=30"],
}
# These end at rows of their own: some by the rule, before and after the interruption, and some not at all.
RULES = ["optimizer=adam", "optimizer.learning_rate=0.1", "stopping=target", "stopping.target.loss=10"]


@pytest.fixture(scope="module")
def composed() -> Iterator[Callable[..., list[Any]]]:
    """Give a function that composes configurations, one for each of so many seeds, from overrides."""
    config.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):

        def make(*words: str, seeds: int = 4) -> list[Any]:
            shared = [f"max_iterations={STEPS}", f"execution.chunk={CHUNK}", "loss=rosenbrock", "guess=normal"]
            cfgs = [copy.deepcopy(compose("config", [*shared, *words])) for _ in range(seeds)]
            for seed, cfg in enumerate(cfgs):
                OmegaConf.update(cfg, "seed", seed)
            return cfgs

        yield make


@pytest.fixture(autouse=True)
def afresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Begin without programs, go on with all lanes, and leave Keras's default dtype as it was."""
    monkeypatch.setattr(groups, "PROGRAMS", Programs())
    monkeypatch.setattr(groups, "FAULTS", {})
    monkeypatch.setattr(fused, "COMPILE_SECONDS", np.inf)
    before = keras.config.floatx()
    yield
    keras.config.set_floatx(before)


def identity(cfg: Any) -> str:
    return config.identity(config.resolved(cfg))


def begun(cfgs: list[Any], pending: Path, chunks: int | None = None, every: float | None = 0) -> Ended:
    """Run jobs as one group until so many chunks are taken; record nothing of it but which ones a signal ended."""
    (group,) = fused.groups(cfgs)
    assert group.alone is None, group.alone
    kept = group_checkpoints.new(pending, [identity(cfg) for cfg in cfgs], group.columns, every)
    came = iter([None] * chunks + ["SIGTERM"]) if chunks is not None else None
    results = fused.run(group, lambda: next(came) if came else None, kept.save)
    kept.close()
    return results


def killed(cfgs: list[Any], pending: Path, chunks: int) -> None:
    """Run jobs until so many chunks are taken, and leave things as a kill does."""

    class Killed(BaseException):
        pass

    (group,) = fused.groups(cfgs)
    kept = group_checkpoints.new(pending, [identity(cfg) for cfg in cfgs], group.columns, 0)
    left = iter(range(chunks))

    def signal() -> None:
        if next(left, None) is None:
            raise Killed

    with pytest.raises(Killed):
        fused.run(group, signal, kept.save)
    kept.close()


def again(cfgs: list[Any], pending: Path) -> tuple[int, Ended]:
    """Go on with the interrupted group of these jobs; returns the step, and what each job came to, in the jobs' order."""
    groups.PROGRAMS.kept.clear()
    by_identity = {identity(cfg): cfg for cfg in cfgs}
    (kept,) = group_checkpoints.interrupted(pending, by_identity.keys(), 0)
    group = groups.again([by_identity[each] for each in kept.identities], kept.columns)
    try:
        start = kept.restore(group)
        assert start is not None
        step = start[0].taken
        results = dict(zip(kept.identities, fused.run(group, lambda: None, kept.save, *start), strict=True))
    finally:
        kept.close()
    return step, [results[each] for each in by_identity]


def same(one: tuple[Trace, Result], other: tuple[Trace, Result]) -> None:
    """Assert that two jobs ended alike and that all their numbers have the same bits."""
    (rows, result), (expected, reference) = one, other
    assert len(rows) == len(expected)
    for name, column in rows.columns().items():
        np.testing.assert_array_equal(column, expected.columns()[name], err_msg=name)
    assert (result.ending, result.stopped_by) == (reference.ending, reference.stopped_by)
    assert (result.iterations, result.best.start) == (reference.iterations, reference.best.start)


@pytest.mark.parametrize("name", GROUPS)
def test_a_group_goes_on_bit_for_bit(composed, tmp_path, name):
    cfgs = composed(*GROUPS[name])
    whole = begun(cfgs, tmp_path / "whole")
    first = begun(cfgs, tmp_path / "parts", chunks=3)
    for (rows, result), (expected, _) in zip(first, whole, strict=True):
        assert (result.ending, result.stopped_by, result.iterations) == (Ending.INTERRUPTED, "SIGTERM", 3 * CHUNK)
        np.testing.assert_array_equal(rows.loss, expected.loss[: 3 * CHUNK + 1])
        np.testing.assert_array_equal(rows.gradient, expected.gradient[: 3 * CHUNK + 1])
    step, rest = again(cfgs, tmp_path / "parts")
    assert step == 3 * CHUNK
    for one, other in zip(rest, whole, strict=True):
        same(one, other)


@pytest.mark.parametrize("compile_seconds", [np.inf, -np.inf], ids=["all lanes", "fewer lanes"])
def test_jobs_that_ended_at_rows_of_their_own_stay_ended(composed, tmp_path, monkeypatch, compile_seconds):
    cfgs = composed(*RULES, seeds=16)
    monkeypatch.setattr(fused, "COMPILE_SECONDS", compile_seconds)
    whole = begun(cfgs, tmp_path / "whole")
    stops = {result.iterations for _, result in whole}
    assert min(stops) < 2 * CHUNK < 3 * CHUNK < max(stops), stops
    killed(cfgs, tmp_path / "killed", chunks=3)
    step, rest = again(cfgs, tmp_path / "killed")
    assert step == 2 * CHUNK
    for one, other in zip(rest, whole, strict=True):
        same(one, other)
    # Those that had ended at a signal are recorded, and do not come again.
    first = begun(cfgs, tmp_path / "signal", chunks=3)
    live = [i for i, (_, result) in enumerate(first) if result.ending is Ending.INTERRUPTED]
    assert 0 < len(live) < len(cfgs)
    step, rest = again([cfgs[i] for i in live], tmp_path / "signal")
    assert step == 3 * CHUNK
    for i, one in zip(live, rest, strict=True):
        same(one, whole[i])


def test_a_group_that_had_ended_takes_no_step_again(composed, tmp_path, monkeypatch):
    cfgs = composed(*RULES)
    whole = begun(cfgs, tmp_path)
    monkeypatch.setattr(groups.Group, "program", None)
    step, rest = again(cfgs, tmp_path)
    assert step >= max(result.iterations for _, result in whole)
    for one, other in zip(rest, whole, strict=True):
        same(one, other)


def damage(folder: Path, step: int) -> None:
    """Change a byte in the rows of a checkpoint."""
    (file,) = folder.glob(f"groups/*/{step}/{checkpoints.ROWS}")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_a_damaged_checkpoint_gives_way_to_the_one_before_and_none_is_passed_over_in_silence(composed, tmp_path, caplog):
    cfgs = composed(*GROUPS["adam"])
    whole = begun(cfgs, tmp_path / "whole")
    begun(cfgs, tmp_path / "parts", chunks=3)
    shutil.copytree(tmp_path / "parts", tmp_path / "none")
    damage(tmp_path / "parts", 3 * CHUNK)
    step, rest = again(cfgs, tmp_path / "parts")
    assert step == 2 * CHUNK and "the one before is looked for" in caplog.text
    for one, other in zip(rest, whole, strict=True):
        same(one, other)
    for step in (2 * CHUNK, 3 * CHUNK):
        damage(tmp_path / "none", step)
    for _ in range(2):
        with pytest.raises(UserError, match=r"^checkpoint: none of .* is whole; set resume=false, which starts anew$"):
            again(cfgs, tmp_path / "none")


def test_two_processes_never_go_on_with_one_job_and_may_share_out_a_group(composed, tmp_path):
    cfgs = composed(*GROUPS["adam"])
    whole = begun(cfgs, tmp_path / "whole")
    begun(cfgs, tmp_path / "parts", chunks=3)
    ids = [identity(cfg) for cfg in cfgs]
    (one,) = group_checkpoints.interrupted(tmp_path / "parts", ids[:1], 0)
    with pytest.raises(UserError, match="are being continued by process"):
        list(group_checkpoints.interrupted(tmp_path / "parts", ids, 0))
    step, rest = again(cfgs[1:], tmp_path / "parts")
    assert one.identities == ids[:1] and step == 3 * CHUNK
    for mine, other in zip(rest, whole[1:], strict=True):
        same(mine, other)
    one.close()
    step, (mine,) = again(cfgs[:1], tmp_path / "parts")
    assert step == 3 * CHUNK
    same(mine, whole[0])


def test_a_group_that_cannot_be_saved_goes_on(composed, tmp_path, caplog):
    (tmp_path / "groups").write_text("")
    results = begun(composed(*GROUPS["adam"]), tmp_path)
    assert [result.iterations for _, result in results] == [STEPS] * 4
    assert "cannot be written" in caplog.text


def test_nothing_is_written_before_it_is_due(composed, tmp_path):
    begun(composed(*GROUPS["adam"]), tmp_path / "pending", every=60)
    assert not (tmp_path / "pending").exists()
