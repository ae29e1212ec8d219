"""An interrupted group goes on from its checkpoint bit for bit, and what the store did not take of a batch is sent later."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import keras
import numpy as np
import processes
import proxy
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import servers
from commands import Command
from conftest import CONF, environment, history, store
from hydra import compose, initialize_config_dir
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from omegaconf import OmegaConf

from runner import checkpoints, sync
from runner.config import parameters, schema
from runner.errors import UserError
from runner.executions.cache import Programs
from runner.fused import checkpoints as group_checkpoints
from runner.fused import groups, lockstep
from runner.loop import Ending, Result
from runner.trace import Trace
from runner.tracking import contract, fused_runs, journal
from runner.tracking.process import Process
from runner.tracking.store import bulk_runs

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


def jobs(*words: str, seeds: int = 4) -> list[Any]:
    """Return the configurations of these overrides, one for each of so many seeds."""
    schema.register()
    shared = [f"max_iterations={STEPS}", f"execution.chunk={CHUNK}", "loss=rosenbrock", "guess=normal"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", [*shared, *words])
    cfgs = [copy.deepcopy(cfg) for _ in range(seeds)]
    for seed, each in enumerate(cfgs):
        OmegaConf.update(each, "seed", seed)
    return cfgs


@pytest.fixture(autouse=True)
def afresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Begin without programs, go on with all lanes, and leave Keras's default dtype as it was."""
    monkeypatch.setattr(groups, "PROGRAMS", Programs())
    monkeypatch.setattr(lockstep, "COMPILE_SECONDS", np.inf)
    before = keras.config.floatx()
    yield
    keras.config.set_floatx(before)


def identity(cfg: Any) -> str:
    return parameters.digest(parameters.resolved(cfg))


def begun(cfgs: list[Any], pending: Path, chunks: int | None = None, every: float | None = 0) -> Ended:
    """Run jobs as one group until so many chunks are taken; record nothing of it but which ones a signal ended."""
    (group,) = lockstep.groups(cfgs)
    assert group.alone is None, group.alone
    kept = group_checkpoints.new(pending, [identity(cfg) for cfg in cfgs], group.columns, every)
    came = iter([None] * chunks + ["SIGTERM"]) if chunks is not None else None
    results = lockstep.run(group, lambda: next(came) if came else None, kept.save)
    kept.close()
    return results


def killed(cfgs: list[Any], pending: Path, chunks: int) -> None:
    """Run jobs until so many chunks are taken, and leave things as a kill does."""

    class Killed(BaseException):
        pass

    (group,) = lockstep.groups(cfgs)
    kept = group_checkpoints.new(pending, [identity(cfg) for cfg in cfgs], group.columns, 0)
    left = iter(range(chunks))

    def kill() -> None:
        if next(left, None) is None:
            raise Killed

    with pytest.raises(Killed):
        lockstep.run(group, kill, kept.save)
    kept.close()


def again(cfgs: list[Any], pending: Path) -> tuple[int, Ended]:
    """Go on with the interrupted group of these jobs; returns the step, and what each job came to, in the jobs' order."""
    groups.PROGRAMS.kept.clear()
    by_identity = {identity(cfg): cfg for cfg in cfgs}
    with group_checkpoints.interrupted(pending, dict.fromkeys(by_identity, 1), 0) as (kept,):
        group = groups.again([by_identity[each] for each in kept.identities], kept.jobs.columns)
        start = kept.restore(group)
        assert start is not None
        step = start[0].taken
        results = dict(zip(kept.identities, lockstep.run(group, lambda: None, kept.save, *start), strict=True))
    return step, [results[each] for each in by_identity]


def same(one: tuple[Trace, Result], other: tuple[Trace, Result]) -> None:
    """Assert that two jobs ended alike and that all their numbers have the same bits."""
    (rows, result), (expected, reference) = one, other
    assert len(rows) == len(expected)
    for name, column in rows.columns().items():
        np.testing.assert_array_equal(column, expected.columns()[name], err_msg=name)
    assert (result.ending, result.stopped_by) == (reference.ending, reference.stopped_by)
    assert (result.iterations, result.best.start) == (reference.iterations, reference.best.start)


@pytest.mark.parametrize("name", [pytest.param(each, marks=pytest.mark.long if each == "float64" else []) for each in GROUPS])
def test_a_group_goes_on_bit_for_bit(tmp_path, name):
    cfgs = jobs(*GROUPS[name])
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
def test_jobs_that_ended_at_rows_of_their_own_stay_ended(tmp_path, monkeypatch, compile_seconds):
    cfgs = jobs(*RULES, seeds=16)
    monkeypatch.setattr(lockstep, "COMPILE_SECONDS", compile_seconds)
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


def test_a_group_that_had_ended_takes_no_step_again(tmp_path, monkeypatch):
    cfgs = jobs(*RULES)
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


def test_a_damaged_checkpoint_gives_way_to_the_one_before_and_none_is_passed_over_in_silence(tmp_path, caplog):
    cfgs = jobs(*GROUPS["adam"])
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


def test_two_processes_never_go_on_with_one_job_and_may_share_out_a_group(tmp_path):
    cfgs = jobs(*GROUPS["adam"])
    whole = begun(cfgs, tmp_path / "whole")
    begun(cfgs, tmp_path / "parts", chunks=3)
    ids = [identity(cfg) for cfg in cfgs]
    with group_checkpoints.interrupted(tmp_path / "parts", {ids[0]: 1}, 0) as (one,):
        with pytest.raises(UserError, match="are being continued by process"):
            again(cfgs[:1], tmp_path / "parts")
        step, rest = again(cfgs[1:], tmp_path / "parts")
        assert one.identities == ids[:1] and step == 3 * CHUNK
    for mine, other in zip(rest, whole[1:], strict=True):
        same(mine, other)
    step, (mine,) = again(cfgs[:1], tmp_path / "parts")
    assert step == 3 * CHUNK
    same(mine, whole[0])


def test_equal_jobs_go_on_each_once(tmp_path):
    cfgs = [*jobs(*GROUPS["adam"], seeds=2), *jobs(*GROUPS["adam"], seeds=2)]
    whole = begun(cfgs, tmp_path / "whole")
    begun(cfgs, tmp_path / "parts", chunks=3)
    ids = [identity(cfg) for cfg in cfgs]
    assert ids[:2] == ids[2:]
    keys = set()
    held = group_checkpoints.interrupted
    # The second is as another process, which may take one of two while the first has the other.
    with held(tmp_path / "parts", {ids[0]: 1, ids[1]: 2}, 0) as (first,), held(tmp_path / "parts", {ids[0]: 1}, 0) as (second,):
        for kept, mine in ((first, [0, 1, 3]), (second, [2])):
            assert kept.identities == [ids[job] for job in mine]
            keys |= {*kept.keys}
            group = groups.again([cfgs[job] for job in mine], kept.jobs.columns)
            start = kept.restore(group)
            assert start is not None and start[0].taken == 3 * CHUNK
            for job, one in zip(mine, lockstep.run(group, lambda: None, kept.save, *start), strict=True):
                same(one, whole[job])
        with pytest.raises(UserError, match="are being continued by process"):
            again(cfgs[:1], tmp_path / "parts")
    assert len(keys) == 4


def test_a_group_that_cannot_be_saved_goes_on(tmp_path, caplog):
    (tmp_path / "groups").write_text("")
    results = begun(jobs(*GROUPS["adam"]), tmp_path)
    assert [result.iterations for _, result in results] == [STEPS] * 4
    assert "cannot be written" in caplog.text


def test_nothing_is_written_before_it_is_due(tmp_path):
    begun(jobs(*GROUPS["adam"]), tmp_path / "pending", every=60)
    assert not (tmp_path / "pending").exists()


# Slow enough to be interrupted, and of numbers that differ in each step.
COMMAND = ["loss=rosenbrock", "optimizer=adam", "guess=normal", "seed=1,2", "execution=graph", "execution.chunk=500"]
COMMAND += ["max_iterations=30000", "tracking.every=500", "checkpoint.every_seconds=0.3", "hydra/launcher=fused", "report=none"]


def by_seed(found: list[Any]) -> dict[str, Any]:
    return {run.data.params["seed"]: run for run in found}


def trajectory(folder: Path, run_id: str) -> pa.Table:
    """Return the file of a run's rows."""
    uri = store(folder).tracking_uri
    return pq.read_table(download_artifacts(run_id=run_id, artifact_path="trajectory.parquet", tracking_uri=uri))


def saved(folder: Path) -> int:
    """Return the last step that the group in a folder was saved at."""
    return max((int(path.name) for path in folder.glob("outputs/pending/groups/*/*") if path.name.isdecimal()), default=0)


def stopped(folder: Path, number: int) -> int | None:
    """Start the sweep, signal it when it has been saved, and return its exit code when it has ended."""
    before, command = saved(folder), Command(folder, "-m", *COMMAND)
    command.wait(lambda: saved(folder) > before)
    command.signal(number)
    return command.ended().code


def equal(folder: Path, runs: list[Any], others: list[Any]) -> None:
    """Assert that jobs have recorded the same numbers, each once, and ended alike."""
    mine, theirs = by_seed(runs), by_seed(others)
    assert len(runs) == len(others) and mine.keys() == theirs.keys()
    for seed, run in mine.items():
        assert run.info.status == "FINISHED" and run.data.tags["ending"] == "iteration_limit"
        assert "stopped_by" not in run.data.tags
        files = [trajectory(folder, each.info.run_id) for each in (run, theirs[seed])]
        assert files[0].equals(files[1])
        for metric in ("loss", "x/0", "gradient/1", "gradient_norm", "system/iterations", "system/best_step"):
            assert history(folder, run.info.run_id, metric) == history(folder, theirs[seed].info.run_id, metric)


def test_the_same_command_goes_on_after_signals_and_kills(cli, runs, tmp_path):
    assert stopped(tmp_path, signal.SIGTERM) == 143
    first = by_seed(runs())
    assert {run.info.status for run in first.values()} == {"KILLED"} and len(runs()) == 2
    step = int(first["1"].data.metrics["system/iterations"])
    assert stopped(tmp_path, signal.SIGKILL) == -signal.SIGKILL
    ended = cli("-m", *COMMAND)
    assert ended.code == 0 and ended.err == ""
    (said,) = [line for line in ended.out.splitlines() if line.startswith("continues 2 jobs as one program from step ")]
    assert int(said.split()[8].rstrip(";")) >= step and said.endswith("; resume=false starts anew")
    continued = by_seed(runs())
    assert {seed: run.info.run_id for seed, run in continued.items()} == {seed: run.info.run_id for seed, run in first.items()}
    assert {run.data.tags["resumed"] for run in continued.values()} == {"2"}
    assert not (tmp_path / "outputs/pending").exists()
    assert cli("-m", *COMMAND, "sweep.reuse=false").code == 0
    anew = [run for run in runs() if run.info.run_id not in {each.info.run_id for each in continued.values()}]
    equal(tmp_path, list(continued.values()), anew)


@pytest.mark.long
@pytest.mark.usefixtures("cli")
def test_packs_whose_worker_is_killed_go_on_from_their_checkpoints(runs, tmp_path):
    words = [word for word in COMMAND if not word.startswith(("seed=", "hydra/launcher="))]
    words += ["seed=1,2,3,4", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "sweep.pack=2"]
    # loky's workers import what the main module is, which has to be the real one.
    start = [sys.executable, "-m", "runner", "-m", *words]
    process = subprocess.Popen(start, cwd=tmp_path, env=environment(), text=True, stdout=subprocess.PIPE)
    assert processes.wait(lambda: saved(tmp_path), 90)
    lock = next(path.parents[1] / journal.LOCK for path in tmp_path.glob(f"outputs/pending/groups/*/*/{checkpoints.SUMS}"))
    os.kill(json.loads(lock.read_text())["pid"], signal.SIGKILL)
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 0 and "continues 2 jobs as one program from step " in out
    assert len(runs()) == 4 and {run.info.status for run in runs()} == {"FINISHED"}
    for run in runs():
        assert history(tmp_path, run.info.run_id, "loss").keys() == {*range(0, 30001, 500)}
    assert not (tmp_path / "outputs/pending").exists()


# Of a few steps, which a signal may end after so many chunks, or whose store may fail while they are recorded.
SHORT = ["-m", "loss=rosenbrock", "optimizer=adam", "guess=normal", "seed=1,2,3", f"max_iterations={STEPS}"]
SHORT += [f"execution.chunk={CHUNK}", "hydra/launcher=fused", "tracking.flush_timeout=1"]


def around(monkeypatch: pytest.MonkeyPatch, then: Callable[[], Any], chunks: int | None = None) -> None:
    """Do something when a group has run and is about to be recorded; a signal comes after so many chunks, if any."""
    run = lockstep.run
    came = iter([None] * chunks + ["SIGTERM"]) if chunks is not None else None

    def wrapped(group: lockstep.Group, signal: Callable[[], str | None], *words: Any) -> Ended:
        results = run(group, (lambda: next(came)) if came else signal, *words)
        then()
        return results

    monkeypatch.setattr(lockstep, "run", wrapped)


def rename(file: Path, *names: str) -> None:
    """Give a table of a store another name."""
    with closing(sqlite3.connect(file)) as database:
        database.execute("ALTER TABLE {} RENAME TO {}".format(*names))


def contents(client: MlflowClient, run: Any) -> dict[str, Any]:
    """Return what a store has of a run, without what differs from one run to the next."""
    metrics = {}
    for key in run.data.metrics:
        rows = [(row.step, row.value) for row in client.get_metric_history(run.info.run_id, key)]
        assert len({step for step, _ in rows}) == len(rows), key
        metrics[key] = sorted(rows) if "seconds" not in key else None
    own = (
        "run_key",
        "folder",
        "overrides",
        "mlflow.runName",
        "heartbeat",
        "heartbeat_every",
        "pid",
        "machine",
        "mlflow.parentRunId",
    )
    tags = {key: value for key, value in run.data.tags.items() if key not in own}
    params = {key: value for key, value in run.data.params.items() if not key.startswith(("tracking.", "sweep."))}
    files = sorted(each.path for each in client.list_artifacts(run.info.run_id))
    return {"metrics": metrics, "tags": tags, "params": params, "files": files, "status": run.info.status}


def undisturbed(cli: Callable[..., Any], runs: Callable[[], list[Any]], tmp_path: Path) -> dict[str, dict[str, Any]]:
    """Run the jobs where nothing disturbs them, and return what the store has of each."""
    assert cli(*SHORT, "tracking.experiment=undisturbed").code == 0
    found = {seed: contents(store(tmp_path), run) for seed, run in by_seed(runs()).items()}
    client = store(tmp_path)
    experiment = client.get_experiment_by_name("undisturbed")
    assert experiment is not None and len(found) == 3
    client.delete_experiment(experiment.experiment_id)
    return found


def test_resume_false_starts_anew(cli, runs, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        around(patched, lambda: None, chunks=3)
        assert cli(*SHORT).code == 143
    before = {run.info.run_id for run in runs()}
    ended = cli(*SHORT, "resume=false")
    assert ended.code == 0 and ended.err == "" and "continues" not in ended.out
    assert {run.info.run_id: run.info.status for run in runs() if run.info.run_id in before} == dict.fromkeys(before, "KILLED")
    assert len(runs()) == 6 and not (tmp_path / "outputs/pending").exists()


def test_what_the_store_does_not_take_is_sent_later_and_once(cli, runs, tmp_path, monkeypatch):
    expected, file = undisturbed(cli, runs, tmp_path), tmp_path / "outputs/mlflow.db"
    with monkeypatch.context() as patched:
        around(patched, lambda: rename(file, "metrics", "gone"))
        ended = cli(*SHORT, "sweep.reuse=false")
    rename(file, "gone", "metrics")
    assert ended.code == 0 and "3 iteration_limit" in ended.out and "Traceback" not in ended.err
    first, second = ended.err.splitlines()
    assert first.startswith("WARNING: 3 runs could not be sent, ") and first.endswith("; send them with: python -m runner.sync")
    assert second.startswith("WARNING: the sweep's own run ") and second.endswith("; send it with: python -m runner.sync")
    assert runs() == []
    shutil.copytree(tmp_path / "outputs/sweeps", tmp_path / "kept")
    folders = [str(path.parent) for path in tmp_path.glob("outputs/sweeps/*/*/*/spool")]

    def next_sweep_sends() -> None:
        assert cli("-m", "optimizer.learning_rate=0.1,0.2", "max_iterations=1", "hydra/launcher=fused").code == 0
        assert processes.wait(lambda: not (tmp_path / "outputs/pending").exists(), 20)
        client = store(tmp_path)
        (experiment,) = [each for each in client.search_experiments() if each.name == "runner"]
        parents = client.search_runs([experiment.experiment_id], "tags.sweep = 'parent'")
        assert [parent.info.status for parent in parents] == ["FINISHED"] * 2
        assert sorted(parent.data.metrics["system/jobs"] for parent in parents) == [2, 3]

    for send in (next_sweep_sends, lambda: sync.main(folders)):
        shutil.copytree(tmp_path / "kept", tmp_path / "outputs/sweeps", dirs_exist_ok=True)
        send()
        assert not list(tmp_path.glob("outputs/sweeps/*/*/*/spool"))
        sent = [run for run in runs() if run.data.params["loss._target_"].endswith("rosenbrock")]
        assert len(sent) == 3 and {seed: contents(store(tmp_path), run) for seed, run in by_seed(sent).items()} == expected


def line(count: int) -> Trace:
    """Return rows of the square at 0, 1, 2 …"""
    steps = np.arange(float(count))
    return Trace(0, steps, steps**2, 2 * steps)


@pytest.fixture
def at_hand(migrated: Path, tmp_path: Path) -> tuple[bulk_runs.Job, dict[str, Any], dict[str, Any]]:
    """Return a run that has ended, the store that it is to be recorded in, and which of its rows are."""
    (tmp_path / "outputs").mkdir()
    shutil.copy(migrated, tmp_path / "outputs")
    about = contract.About(tmp_path / "run", "one", {"seed": "1"}, {"identity": "same"}, "seed: 1")
    job = bulk_runs.Job(about, line(5), {"ending": "iteration_limit"}, {"system/iterations": 4.0}, *bulk_runs.ids(1))
    keys = {"uri": store(tmp_path).tracking_uri, "experiment": "silent", "pending": str(tmp_path / "pending")}
    settings = {"name": None, "every": 1, "max_coordinates": 16, "full_loss_every": 100}
    return job, {**keys, "flush_timeout": 2, "heartbeat": 10.0}, settings


def test_runs_that_the_store_took_without_an_answer_are_there_once(at_hand, tmp_path, monkeypatch):
    job, keys, settings = at_hand
    record = bulk_runs.record

    def unanswered(*words: Any, **options: Any) -> None:
        record(*words, **options)
        raise ConnectionError("the answer was lost")

    monkeypatch.setattr(bulk_runs, "record", unanswered)
    said = fused_runs.record({**keys, "flush_timeout": 0}, [job], settings)
    assert said["unsent"] == 1 and "ConnectionError: the answer was lost (" in said["left"]
    assert sync.main(["--pending", keys["pending"]]) == 0
    client = store(tmp_path)
    experiment = client.get_experiment_by_name("silent")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == job.key and run.info.status == "FINISHED"
    assert history(tmp_path, run.info.run_id, "loss") == {step: step**2 for step in range(5)}
    assert history(tmp_path, run.info.run_id, "system/iterations") == {0: 4.0}


def test_runs_that_another_process_has_recorded_meanwhile_are_there_once(at_hand, tmp_path, monkeypatch):
    job, keys, settings = at_hand
    assert fused_runs.record(keys, [job], settings)["unsent"] == 0
    looks = iter([lambda *words: set(), bulk_runs.cleared])
    # As where the other one is committed just after this one has looked.
    monkeypatch.setattr(bulk_runs, "cleared", lambda *words: next(looks)(*words))
    longer = job._replace(rows=line(7), metrics={"system/iterations": 6.0})
    assert fused_runs.record(keys, [longer], settings)["unsent"] == 0
    assert next(looks, None) is None
    assert history(tmp_path, job.key, "loss") == {step: step**2 for step in range(7)}
    assert history(tmp_path, job.key, "system/iterations") == {0: 6.0}


def test_a_recorder_process_that_dies_while_a_batch_is_recorded_takes_nothing_along(cli, runs, tmp_path, monkeypatch):
    expected = undisturbed(cli, runs, tmp_path)

    def kill() -> None:
        assert Process.current is not None
        Process.current.child.kill()

    around(monkeypatch, kill)
    ended = cli(*SHORT, "sweep.reuse=false")
    assert ended.code == 0 and ended.err == "" and "3 iteration_limit" in ended.out
    assert len(runs()) == 3 and {seed: contents(store(tmp_path), run) for seed, run in by_seed(runs()).items()} == expected


def test_an_interrupted_group_that_the_store_did_not_take_goes_on(cli, runs, tmp_path, monkeypatch):
    expected, file = undisturbed(cli, runs, tmp_path), tmp_path / "outputs/mlflow.db"
    with monkeypatch.context() as patched:
        around(patched, lambda: rename(file, "metrics", "gone"), chunks=3)
        assert cli(*SHORT).code == 143
    rename(file, "gone", "metrics")
    assert runs() == [] and sync.main([]) == 0
    before = by_seed(runs())
    assert {run.info.status for run in before.values()} == {"KILLED"} and len(before) == 3
    ended = cli(*SHORT)
    assert ended.code == 0 and ended.err == "" and f"continues 3 jobs as one program from step {3 * CHUNK};" in ended.out
    after = by_seed(runs())
    assert {seed: run.info.run_id for seed, run in after.items()} == {seed: run.info.run_id for seed, run in before.items()}
    for seed, run in after.items():
        assert history(tmp_path, run.info.run_id, "loss").keys() == {*range(STEPS + 1)}
        assert run.data.tags.pop("resumed") == "1" and run.info.status == "FINISHED"
        # What a run came to stands at step 0, twice if it came to something twice.
        names = [name for name in run.data.metrics if not name.startswith("system/")]
        assert {name: expected[seed]["metrics"][name] for name in names} == {
            name: sorted(history(tmp_path, run.info.run_id, name).items()) for name in names
        }
    assert not list(tmp_path.glob("outputs/sweeps/*/*/*/spool")) and not (tmp_path / "outputs/pending").exists()


def test_an_interrupted_group_goes_on_offline_and_is_sent_once(cli, runs, tmp_path, monkeypatch):
    expected, words = undisturbed(cli, runs, tmp_path), (*SHORT, "seed=1,2,2,3", "tracking.offline=true")
    with monkeypatch.context() as patched:
        around(patched, lambda: None, chunks=3)
        assert cli(*words).code == 143
    assert len(list(tmp_path.glob("outputs/sweeps/*/*/*/spool"))) == 4
    ended = cli(*words)
    assert ended.code == 0 and ended.err == "" and "4 jobs: 4 interrupted before" in ended.out
    assert f"continues 4 jobs as one program from step {3 * CHUNK};" in ended.out
    assert not list(tmp_path.glob("outputs/pending/groups/*"))
    again = cli(*words)
    assert again.code == 0 and "4 jobs: 4 reused" in again.out
    assert runs() == [] and sync.main([]) == 0
    assert [run.data.params["seed"] for run in runs()].count("2") == 2 and len(runs()) == 4
    for run in runs():
        assert run.data.tags.pop("resumed") == "1"
        wanted = expected[run.data.params["seed"]]
        # Of two equal jobs one has another number.
        assert contents(store(tmp_path), run) == wanted | {"tags": wanted["tags"] | {"job": run.data.tags["job"]}}
    assert {run.data.tags["job"] for run in runs()} == {"0", "1", "2", "3"}
    assert not list(tmp_path.glob("outputs/sweeps/*/*/*/spool")) and not (tmp_path / "outputs/pending").exists()


def test_what_a_database_has_of_a_group_is_replaced_by_what_is_sent_later(cli, runs, tmp_path, monkeypatch):
    expected = undisturbed(cli, runs, tmp_path)
    with monkeypatch.context() as patched:
        around(patched, lambda: None, chunks=3)
        assert cli(*SHORT).code == 143
    before = {seed: run.info.run_id for seed, run in by_seed(runs()).items()}
    assert cli(*SHORT, "tracking.offline=true").code == 0 and {run.info.status for run in runs()} == {"KILLED"}
    assert sync.main([]) == 0 and {seed: run.info.run_id for seed, run in by_seed(runs()).items()} == before
    for run in runs():
        assert run.data.tags.pop("resumed") == "1"
        assert contents(store(tmp_path), run) == expected[run.data.params["seed"]]


@pytest.mark.long
def test_runs_on_a_server_go_on_and_what_it_does_not_take_is_sent_later(cli, tmp_path, monkeypatch):
    gone = threading.Event()
    fault = lambda method, path, before: proxy.BUSY if gone.is_set() else None  # noqa: E731
    with (
        servers.mlflow(f"sqlite:///{tmp_path}/new.db", tmp_path) as uri,
        proxy.faulty(uri, fault) as address,
    ):
        client, words = MlflowClient(tracking_uri=uri), (*SHORT, f"tracking.uri={address}", "tracking.experiment=named")
        with monkeypatch.context() as patched:
            around(patched, lambda: None, chunks=3)
            assert cli(*words).code == 143
        experiment = client.get_experiment_by_name("named")
        assert experiment is not None
        found = lambda: by_seed(client.search_runs([experiment.experiment_id], "tags.identity LIKE '%'"))  # noqa: E731
        before = found()
        assert {run.info.status for run in before.values()} == {"KILLED"} and len(before) == 3
        with monkeypatch.context() as patched:
            around(patched, gone.set)
            ended = cli(*words)
        assert ended.code == 0 and "WARNING: 3 runs could not be sent" in ended.err and "Traceback" not in ended.err
        assert f"continues 3 jobs as one program from step {3 * CHUNK};" in ended.out
        gone.clear()
        assert sync.main([]) == 0
        for seed, run in found().items():
            assert run.info.run_id == before[seed].info.run_id and run.info.status == "FINISHED"
            steps = [row.step for row in client.get_metric_history(run.info.run_id, "loss")]
            assert sorted(steps) == [*range(STEPS + 1)]
        assert "3 reused" in cli(*words).out
