"""Sweeps: what is finished is reused, what fails spoils nothing else, and grids of one's own."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import servers
from commands import Command, Ended
from conftest import CONF, environment, history, own_loss, store
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.types import RunMode
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from omegaconf import OmegaConf, open_dict

from runner import sync
from runner.config import grammar, parameters, schema
from runner.errors import UserError
from runner.sweeps import composer, packs
from runner.sweeps import sweep as sweeps
from runner.sweeps.task import Outcome, Task
from runner.tracking import sweep_client
from runner.tracking.sweep_client import SweepRecorder

# A loss that goes wrong in as many ways as there are numbers.
BAD = """
import os, sys
import tensorflow as tf

class Odd(BaseException):
    def __init__(self, *, word):
        self.handle = open(os.devnull)

def loss(x, *, way):
    if way == 1: raise ZeroDivisionError("division by zero")
    if way == 2: sys.exit(3)
    if way == 3: raise Odd(word="odd")
    if way == 4: os.kill(os.getpid(), 9)
    return tf.square(x - way)
"""


@pytest.fixture
def bad(tmp_path, monkeypatch):
    """Give the words that pick the loss that goes wrong."""
    own_loss(tmp_path, "bad", BAD)
    monkeypatch.syspath_prepend(tmp_path)
    return ["--config-dir", "conf", "loss=bad", "guess=point", "guess.x=3", "max_iterations=3"]


def children(folder: Path) -> list:
    client = store(folder)
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
    return sorted((run for run in runs if "identity" in run.data.tags), key=lambda run: run.info.start_time)


def parents(folder: Path) -> list:
    client = store(folder)
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()], "tags.sweep = 'parent'")
    return sorted(runs, key=lambda run: run.info.start_time)


def test_a_sweep_has_a_parent_with_a_table_of_its_jobs(cli, tmp_path):
    ended = cli("-m", "optimizer=sgd,adam", "optimizer.learning_rate=0.1,1.5", "max_iterations=80")
    assert ended.code == 0 and ended.err == ""
    (parent,) = parents(tmp_path)
    assert parent.info.status == "FINISHED" and parent.data.metrics["system/jobs"] == 4
    assert {run.data.tags["mlflow.parentRunId"] for run in children(tmp_path)} == {parent.info.run_id}
    assert sorted(run.data.tags["job"] for run in children(tmp_path)) == ["0", "1", "2", "3"]
    client = store(tmp_path)
    path = client.download_artifacts(parent.info.run_id, "jobs.json")
    table = OmegaConf.to_container(OmegaConf.create(Path(path).read_text()))
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    by_id = {run.info.run_id: run for run in children(tmp_path)}
    assert {row["run_id"] for row in rows} == by_id.keys()
    for row in rows:
        run = by_id[row["run_id"]]
        assert row["ending"] == run.data.tags["ending"] and row["iterations"] == run.data.metrics["system/iterations"]
        assert row["best_loss"] == run.data.metrics["system/best_loss"] and row["overrides"] == run.data.tags["overrides"]
    assert parent.data.metrics["system/best_loss"] == min(row["best_loss"] for row in rows)


def test_the_same_command_again_runs_what_is_not_finished(cli, tmp_path):
    words = ["-m", "optimizer.learning_rate=0.1,0.2", "max_iterations=5"]
    assert "2 jobs: 2 new\n" in cli(*words).out
    before = [run.info.run_id for run in children(tmp_path)]
    # Where rows go, how the sweep is run and how many steps a call takes are no part of a job's identity.
    again = cli(*words, "tracking.every=2", "sweep.fail_fast=true")
    assert "2 jobs: 2 reused\n" in again.out and [run.info.run_id for run in children(tmp_path)] == before
    wider = cli("-m", "optimizer.learning_rate=0.1,0.2,0.3", "max_iterations=5")
    assert "3 jobs: 2 reused, 1 new\n" in wider.out and len(children(tmp_path)) == 3
    assert wider.out.count("iteration_limit at step 5") == 1 and "3 iteration_limit (2 of them reused)" in wider.out
    store(tmp_path).set_terminated(before[0], "KILLED")
    assert (
        "3 jobs: 1 interrupted before, 2 reused\n" in cli("-m", "optimizer.learning_rate=0.1,0.2,0.3", "max_iterations=5").out
    )
    assert "2 to run, for sweep.reuse=false\n" in cli(*words, "sweep.reuse=false").out
    assert len(children(tmp_path)) == 6


def test_a_single_run_is_reused_by_a_sweep(cli, tmp_path):
    assert cli("optimizer.learning_rate=0.1", "max_iterations=5").code == 0
    assert "2 jobs: 1 reused, 1 new\n" in cli("-m", "optimizer.learning_rate=0.1,0.2", "max_iterations=5").out


@pytest.mark.parametrize("launcher", ["basic", "fused"])
def test_a_job_that_goes_wrong_spoils_no_other(cli, tmp_path, bad, launcher):
    ended = cli("-m", *bad, "loss.way=0,1,2,3,5", f"hydra/launcher={launcher}")
    assert ended.code == 1 and ended.err == "error: 3 of 5 jobs failed, as told above\n"
    finished = [run for run in children(tmp_path) if run.info.status == "FINISHED"]
    assert sorted(run.data.params["loss.way"] for run in finished) == ["0", "5"]
    for reason in ("ZeroDivisionError: division by zero", "SystemExit: 3", "Odd: "):
        assert reason in ended.out
    assert parents(tmp_path)[0].info.status == "FAILED" and parents(tmp_path)[0].data.metrics["system/failed"] == 3
    # The log that is named holds the traceback, and the command that is named fails alone as it did here.
    (log,) = {line.split()[1] for line in ended.out.splitlines() if "log:" in line and "/1/" in line}
    assert "Traceback" in Path(log).read_text() and "ZeroDivisionError" in Path(log).read_text()
    (again,) = (line.split("runner ", 1)[1] for line in ended.out.splitlines() if "again:" in line and "way=1" in line)
    alone = cli("--config-dir", "conf", *shlex.split(again))
    assert alone.code == 1 and "ZeroDivisionError: division by zero" in alone.err and alone.err.count("\n") == 1


def test_a_sweep_may_end_at_the_first_failure(cli, tmp_path, bad):
    ended = cli("-m", *bad, "loss.way=0,1,5", "sweep.fail_fast=true")
    assert ended.code == 1 and "1 of 2 jobs failed" in ended.err
    assert len([run for run in children(tmp_path) if run.info.status == "FINISHED"]) == 1


def test_a_signal_ends_a_sweep_with_the_job(prepared):
    words = ["-m", "optimizer.learning_rate=0.1,0.2", "execution=eager", "max_iterations=1000000", "tracking.every=100"]
    command, consoles = Command(prepared, *words), "outputs/sweeps/*/*/0/console.txt"
    command.wait(lambda: any("  20  " in file.read_text() for file in prepared.glob(consoles)))
    command.signal(signal.SIGTERM)
    assert command.ended() == Ended(143, "") and "1 jobs: 1 interrupted" in command.out.read_text()
    (run,) = children(prepared)
    assert run.info.status == "KILLED" and parents(prepared)[0].info.status == "KILLED"


def test_grids_of_numbers(cli, runs):
    assert cli("-m", "optimizer.learning_rate=logspace(-3,-1,5)", "max_iterations=1").code == 0
    rates = sorted(float(run.data.params["optimizer.learning_rate"]) for run in runs())
    np.testing.assert_allclose(rates, np.logspace(-3, -1, 5), rtol=1e-15)
    assert grammar.linspace(0, 1, 3).list == np.linspace(0, 1, 3).tolist()
    ended = cli("-m", "optimizer.learning_rate=logspace(-3,-1,0)")
    assert ended.code == 1 and "1 to 100000, got 0" in ended.err and ended.err.count("\n") == 1


def test_a_key_may_be_deleted_in_a_grid(cli, runs):
    assert cli("-m", "~optimizer.nesterov", "seed=1,2", "max_iterations=1").code == 0
    assert len(runs()) == 2 and not any("optimizer.nesterov" in run.data.params for run in runs())


def test_what_a_death_took_along_is_launched_again():
    came = {0: Outcome(()), 1: True, 2: True, 3: True, 4: False}
    assert sweeps.again(came, apart=False) == [[4], [1, 2], [3]]
    # Where processes die apart from each other, tasks become smaller, and run side by side.
    assert sweeps.again(came, apart=True) == [[1, 2, 3, 4]]
    assert sweeps.again({0: Outcome(())}, apart=False) == sweeps.again({0: Outcome(())}, apart=True) == []


BEGUN, FINISHED = ({"run_id": "1", "status": status, "ending": None} for status in ("RUNNING", "FINISHED"))
AGAIN = FINISHED | {"run_id": "2"}


def settled(*answers: tuple[bool, dict]) -> dict:
    """Return what has become of the jobs a and b, of which b was finished before, by what the recorder process answers."""
    said = [{"busy": busy, "known": {"b": FINISHED} | known} for busy, known in answers]
    process = SimpleNamespace(ask=lambda *_: said.pop(0) if len(said) > 1 else said[0])
    recorder = SimpleNamespace(process=process, where={}, keys={"pending": ""})
    return SweepRecorder.settled(recorder, {"a", "b"}, {"b": FINISHED})  # pyright: ignore[reportArgumentType]


def test_what_a_dead_process_had_under_way_is_waited_for():
    # Of a nothing is in the store at first, and of b what was there before.
    known = [{}, {"a": BEGUN}, {"a": FINISHED, "c": FINISHED}, {"a": FINISHED, "b": AGAIN}, {}]
    assert settled(*((False, each) for each in known)) == {"a": FINISHED, "b": AGAIN}


def test_its_recorder_is_waited_for_as_long_as_it_takes(monkeypatch):
    monkeypatch.setattr(sweep_client, "SETTLED", 0.5)
    # The run stays open: its recorder has been killed, and nobody waits for ever.
    assert settled((False, {"a": BEGUN})) == {"a": BEGUN}
    late = {"a": FINISHED, "b": AGAIN}
    assert settled(*[(True, {"a": BEGUN})] * 8, (False, {"a": BEGUN}), (False, late)) == late


def test_values_that_go_together(cli, runs):
    pairs = "sweep.zip=[[optimizer.learning_rate,optimizer.momentum]]"
    assert (
        cli("-m", "optimizer.learning_rate=0.1,0.2", "optimizer.momentum=0.5,0.6", "seed=1,2", "max_iterations=1", pairs).code
        == 0
    )
    keys = ("optimizer.learning_rate", "optimizer.momentum", "seed")
    found = sorted(tuple(run.data.params[key] for key in keys) for run in runs())
    assert found == [("0.1", "0.5", "1"), ("0.1", "0.5", "2"), ("0.2", "0.6", "1"), ("0.2", "0.6", "2")]


@pytest.mark.parametrize(
    ("typed", "together", "words"),
    [
        (["seed=1,2"], [["seed", "max_iterations"]], "names max_iterations, which is not swept over"),
        (["seed=1,2", "max_iterations=1,2,3"], [["seed", "max_iterations"]], "seed has 2, max_iterations has 3"),
        (["optimizer.learning_rate=interval(0,1)"], [], "hydra/sweeper=optuna"),
    ],
)
def test_a_grid_that_makes_no_sense_is_told(typed, together, words):
    with pytest.raises(UserError, match=words):
        grammar.expand(OverridesParser.create().parse_overrides(typed), together)


VALUES = st.lists(
    st.sampled_from(
        [
            "optimizer.learning_rate=0.5",
            "optimizer.learning_rate=1",
            "optimizer.nesterov=true",
            "+optimizer.mine={a:1,b:[2,3]}",
            "++optimizer.momentum=0.25",
            "~optimizer.clipnorm",
            "guess.x=[1.5,-2]",
            "seed=7",
            "dtype=float64",
            "max_iterations=12",
            "stopping.time_limit=3",
            "tracking.uri=${oc.env:HOME}",
            "sweep.reuse=false",
            "hydra.job.chdir=true",
        ]
    ),
    max_size=6,
    unique_by=lambda override: override.lstrip("+~").partition("=")[0],
)
CHOICES = st.lists(
    st.sampled_from(
        [
            "loss=rosenbrock",
            "guess=point",
            "optimizer/learning_rate=cosine_decay",
            "stopping=[gradient_norm,plateau]",
            "execution=eager",
            "optimizer=adam",
        ]
    ),
    max_size=3,
    unique=True,
)


@settings(deadline=None, max_examples=10)
@given(choices=CHOICES, values=VALUES)
def test_a_job_is_composed_as_hydra_composes_it(choices, values):
    schema.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        master = hydra.compose_config("config", [], run_mode=RunMode.MULTIRUN, with_log_configuration=False)
        composed = composer.Composer(hydra.config_loader, master)
        composed(choices)
        try:
            expected = hydra.config_loader.load_sweep_config(master, [*choices, *values])
        except Exception as error:
            with pytest.raises(type(error), match=re.escape(str(error))):
                composed([*choices, *values])
            return
        job = composed([*choices, *values])
        assert job.hydra.hydra.runtime.choices == expected.hydra.runtime.choices
        assert list(job.overrides) == OmegaConf.to_container(expected.hydra.overrides.task)
        with open_dict(expected):
            del expected["hydra"]
        assert OmegaConf.to_yaml(job.cfg) == OmegaConf.to_yaml(expected)
        assert json.dumps(job.plain) == json.dumps(parameters.resolved(expected))


def start_eight(folder: Path, uri: str) -> Counter:
    """Start eight runs at once on a store that was never opened, and count the experiments and states that they end in."""
    words = [f"tracking.uri={uri}", "tracking.experiment=named", "max_iterations=2"]

    def one(seed: int) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "runner", *words, f"seed={seed}"]
        return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)

    with ThreadPoolExecutor(8) as pool:
        ended = list(pool.map(one, range(8)))
    assert [each.returncode for each in ended] == [0] * 8, [each.stderr for each in ended]
    client = MlflowClient(tracking_uri=uri)
    names = {each.experiment_id: each.name for each in client.search_experiments()}
    return Counter((names[run.info.experiment_id], run.info.status) for run in client.search_runs(list(names)))


TEN_TIMES = [(kind, time) for kind in ("sqlite", "postgresql", "server") for time in range(10)]


# One such start is in test_recorder.
@pytest.mark.long
@pytest.mark.parametrize(("kind", "time"), TEN_TIMES)
def test_eight_processes_may_open_a_new_store_at_once(tmp_path, kind, time):
    expected = {("named", "FINISHED"): 8}
    if kind == "sqlite":
        assert start_eight(tmp_path, f"sqlite:///{tmp_path}/new.db") == expected
    elif kind == "postgresql":
        with servers.postgresql(tmp_path / "server") as uri:
            assert start_eight(tmp_path, uri) == expected
    else:
        with servers.mlflow(f"sqlite:///{tmp_path}/new.db", tmp_path) as address:
            assert start_eight(tmp_path, address) == expected


def test_a_job_whose_worker_died_after_its_run_had_ended_has_its_result_and_a_log(tmp_path):
    run = {"run_id": "1", "ending": "iteration_limit", "iterations": "5"}
    task = SimpleNamespace(logs=str(tmp_path))
    recorder = SimpleNamespace(settled=lambda asked, known: dict.fromkeys(asked, run))
    job = SimpleNamespace(overrides=("seed=1",), identity="a")
    sweep = SimpleNamespace(task=task, recorder=recorder, known={}, composed=lambda _: job)
    found = sweeps.Sweep.recorded(sweep, [["seed=1"], ["seed=2"]], [True, False])  # pyright: ignore[reportArgumentType]
    assert found == [Outcome(("seed=1",), "a", "1", "iteration_limit", iterations=5, log=str(tmp_path)), False]


def test_what_an_earlier_sweep_left_in_the_same_folder_is_none_of_this_ones(cli, tmp_path, monkeypatch):
    words = ["-m", "hydra.sweep.dir=fixed", "max_iterations=5"]
    assert cli(*words, "optimizer.learning_rate=0.1,0.2").code == 0

    class Dying:
        def launch(self, batch, initial_job_idx):
            raise RuntimeError("a worker died")

    monkeypatch.setattr(Plugins, "instantiate_launcher", lambda *_, **__: Dying())
    ended = cli(*words, "optimizer.learning_rate=0.3,0.4")
    assert ended.code == 1 and "a worker died" in ended.err and "iteration_limit" not in ended.out, ended
    # The same numbers of packs, too.
    tasks = [Task(tmp_path / "fixed/outcomes" / name, False) for name in ("a", "b")]
    for each in tasks:
        packs.Pack(SimpleNamespace(), each, OmegaConf.create()).write(0, 0, [["seed=1"]])
    assert len([*tmp_path.glob("fixed/packs/*/0/jobs.json")]) == 2


def test_a_fused_job_leaves_the_spool_of_an_earlier_one_in_the_same_folder_whole(cli, tmp_path):
    words = ["-m", "hydra/launcher=fused", "hydra.sweep.dir=fixed", "max_iterations=5", "tracking.offline=true"]
    rates = ["0.1", "0.2", "0.3", "0.4"]
    for two in (rates[:2], rates[2:]):
        assert cli(*words, f"optimizer.learning_rate={','.join(two)}").code == 0
    assert sync.main([]) == 0
    for run in children(tmp_path):
        rate = float(run.data.params["optimizer.learning_rate"])
        rows = [value for _, value in sorted(history(tmp_path, run.info.run_id, "loss").items())]
        assert rows == pytest.approx([16 * (1 - 2 * rate) ** (2 * k) for k in range(6)], rel=1e-3)
    assert sorted(run.data.params["optimizer.learning_rate"] for run in children(tmp_path)) == rates
