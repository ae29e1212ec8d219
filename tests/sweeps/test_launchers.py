"""Launchers of many processes: joblib, submitit and Ray, for real, all tracking to an MLflow server on PostgreSQL."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import servers
from conftest import CONF, ROOT, Ended, environment
from mlflow import MlflowClient
from processes import below, left, wait

# The gradient's sign is that of a descent; one way kills its process, another tells of TensorFlow's threads.
LOSS = """
import os, sys
import numpy as np
import tensorflow as tf

STEPS = [0, 1]

class Odd(BaseException):
    # Which no pickle brings to another process.
    def __init__(self, *, word):
        self.handle = open(os.devnull)

def loss(x, *, way):
    # In the second step, when the run has begun.
    if way == 4 and not tf.is_symbolic_tensor(x) and not STEPS.pop(): os.kill(os.getpid(), 9)
    if way == 6: raise RuntimeError("threads " + os.environ["TF_NUM_INTRAOP_THREADS"])
    if way == 7: raise Odd(word="odd")
    if way == 8: sys.exit(3)
    return tf.square(x - 4)

def guess(loss, dtype, seed, *, x):
    if x == 6: os.kill(os.getpid(), 9)
    if x == 7: raise RuntimeError("seven")
    return np.array(x, dtype)
"""
GROUPS = {"joblib": "joblib", "ray": "ray", "submitit_local": "slurm", "submitit_slurm": "slurm", "slurm": "slurm"}
# Forty jobs of two programs, and what differs between a job in a pack and the same one in another sweep.
GRID = ["optimizer=sgd,adam", "optimizer.learning_rate=logspace(-3,-1,5)", "guess.x=0,1,2,3", "max_iterations=30"]
OWN = {"mlflow.parentRunId", "options", "overrides", "run_key", "folder", "pid", "heartbeat"}
LONG = ["execution=eager", "max_iterations=1000000", "tracking.every=100"]


@contextmanager
def tracked(folder: Path) -> Iterator[str]:
    """Start PostgreSQL and an MLflow server on it, and give the server's address."""
    with servers.postgresql(folder / "postgresql") as uri, servers.mlflow(uri, folder) as address:
        yield address


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    with tracked(tmp_path_factory.mktemp("servers")) as address:
        yield address


def command(folder: Path, address: str, *words: str) -> tuple[list[str], dict[str, Any]]:
    """Return a sweep's command and how it is started in a folder, whose name is the experiment's."""
    (folder / "conf/loss").mkdir(parents=True, exist_ok=True)
    (folder / "conf/loss/ways.yaml").write_text("_target_: ways.loss\nway: 0\n")
    (folder / "conf/guess").mkdir(exist_ok=True)
    (folder / "conf/guess/ways.yaml").write_text("_target_: ways.guess\nx: 1\n")
    (folder / "ways.py").write_text(LOSS)
    where = [f"tracking.uri={address}", f"tracking.experiment={folder.name}"]
    start = [
        sys.executable,
        "-u",
        "-m",
        "runner",
        "-m",
        "--config-dir",
        "conf",
        "loss=ways",
        "guess=point",
        "guess.x=1",
        *where,
    ]
    return [*start, *words], {"cwd": folder, "env": environment(folder), "text": True}


def sweep(folder: Path, address: str, *words: str) -> Ended:
    """Run a sweep in a folder."""
    line, how = command(folder, address, *words)
    ended = subprocess.run(line, **how, capture_output=True, timeout=240, check=False)
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def recorded(folder: Path, address: str) -> tuple[list, list]:
    """Return the parent runs of a folder's sweeps, and their children."""
    client = MlflowClient(tracking_uri=address)
    experiment = client.get_experiment_by_name(folder.name)
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    return [run for run in runs if "sweep" in run.data.tags], [run for run in runs if "sweep" not in run.data.tags]


def artifact(address: str, run: Any, name: str) -> str:
    """Return the text of a run's artifact."""
    return Path(MlflowClient(tracking_uri=address).download_artifacts(run.info.run_id, name)).read_text()


def comes_to_what_it_should(folder: Path, address: str, launcher: list[str]) -> None:
    """Hold a sweep against SGD's own formula, on (x - 4)**2: every step takes x - 4 times 1 - 2 learning_rate."""
    ended = sweep(folder, address, *launcher, "optimizer.learning_rate=0.05,0.1,0.2", "max_iterations=10")
    assert ended.code == 0 and "3 iteration_limit" in ended.out and ended.out.count("iteration_limit at step 10") == 3, ended
    (parent,), children = recorded(folder, address)
    assert parent.info.status == "FINISHED" and len(children) == 3
    for run in children:
        rate = float(run.data.params["optimizer.learning_rate"])
        assert run.data.metrics["loss"] == pytest.approx(9 * (1 - 2 * rate) ** 20, rel=1e-4)
        assert (run.info.status, run.data.tags["ending"]) == ("FINISHED", "iteration_limit")
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    again = sweep(folder, address, *launcher, "optimizer.learning_rate=0.05,0.1,0.2", "max_iterations=10")
    assert again.code == 0 and "3 jobs: 3 reused" in again.out


def loses_one_job_alone(folder: Path, address: str, launcher: list[str], threads: int) -> None:
    """Kill a job's process, and make sure that the others end well, and that this one is named."""
    words = [*launcher, "loss.way=0,4,5,6,7,8", "max_iterations=3", "execution=eager"]
    ended = sweep(folder, address, *words)
    assert ended.code == 1 and "4 of 6 jobs failed" in ended.err, ended
    assert "Odd: " in ended.out and "SystemExit: 3" in ended.out
    told = [line for line in ended.out.splitlines() if line.startswith("  ") and "loss.way=4" in line and "died" in line]
    assert len(told) == 1 and "its process died" in told[0]
    assert f"RuntimeError: threads {threads}" in ended.out, ended.out
    (parent,), _ = recorded(folder, address)
    assert parent.info.status == "FAILED" and parent.data.metrics["system/failed"] == 4
    table = json.loads(artifact(address, parent, "jobs.json"))
    told_of = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert sorted(re.findall(r"loss.way=(\d)", str([each["overrides"] for each in told_of]))) == [*"045678"]
    for each in told_of:
        assert each["log"] and (each["ending"] == "iteration_limit" or each["error"]), each

    def killed() -> set:
        """The recorder of a dead process ends its run, in its own time."""
        return set(endings(folder, address, 4))

    assert wait(lambda: killed() == {("KILLED", "interrupted")}, 10), killed()
    for way in (0, 5):
        # joblib ends all its workers where one dies; what was done by then is not done again.
        found = endings(folder, address, way)
        assert found.count(("FINISHED", "iteration_limit")) == 1 and {*found} <= {("FINISHED", "iteration_limit"), *killed()}
    for run in recorded(folder, address)[1]:
        if run.info.status == "FINISHED":
            # As without the others.
            assert run.data.metrics["x"] == pytest.approx(4 - 3 * 0.8**3, rel=1e-6)
    planned = sweep(folder, address, *words, "sweep.plan=true").out
    assert re.search(r"^6 jobs: (?=.*\b2 reused)(?=.*\b1 interrupted before)", planned, re.MULTILINE), planned


def packs_leave_what_one_program_leaves(folder: Path, address: str, launcher: list[str], packs: int, programs: int) -> None:
    """Run forty jobs in packs and as the fused launcher does, and hold what each of them left against the other."""
    ended = sweep(folder, address, *launcher, *GRID)
    assert ended.code == 0 and "40 jobs: 40 iteration_limit" in ended.out, ended
    made = [int(count) for count in re.findall(r"^(\d+) jobs as one program: ", ended.out, re.MULTILINE)]
    # Those of a pack have one optimizer, or two.
    assert sum(made) == 40 and len(made) == programs and "iteration_limit at step" not in ended.out, ended.out
    assert len([*folder.glob("outputs/sweeps/*/*/packs/*/*/console.txt")]) == packs
    assert sweep(folder, address, *GRID, "hydra/launcher=fused", "sweep.reuse=false").code == 0
    client, (parents, children) = MlflowClient(tracking_uri=address), recorded(folder, address)
    halves: list[dict[str, Any]] = [{}, {}]
    for run in children:
        halves["sweep.reuse=False" in run.data.tags["overrides"]][run.data.tags["job"]] = run
    assert [*map(len, halves)] == [40, 40] and {run.info.status for run in [*parents, *children]} == {"FINISHED"}
    for job, one in halves[0].items():
        other = halves[1][job]
        assert one.data.params == other.data.params
        assert {**one.data.tags, **dict.fromkeys(OWN)} == {**other.data.tags, **dict.fromkeys(OWN)}
        assert one.data.metrics.keys() == other.data.metrics.keys()
        for metric in ("x", "loss", "gradient", "system/iterations"):
            # Programs of other numbers of lanes round otherwise, by a unit of single precision a step.
            assert one.data.metrics[metric] == pytest.approx(other.data.metrics[metric], rel=1e-4, abs=1e-5)
        assert len(client.get_metric_history(one.info.run_id, "loss")) == 31
        assert {each.path for each in client.list_artifacts(one.info.run_id)} == {"config.yaml", "trajectory.parquet"}
    again = sweep(folder, address, *launcher, *GRID)
    assert again.code == 0 and "40 jobs: 40 reused" in again.out, again


def one_job_of_a_pack_is_to_blame(folder: Path, address: str, launcher: list[str]) -> None:
    """Let one job kill the process of its pack, and another one fail, and make sure that the others come to an end once."""
    words = ["guess=ways", "guess.x=range(0,12)", "max_iterations=5", "sweep.pack=6"]
    ended = sweep(folder, address, *launcher, *words)
    assert ended.code == 1 and "12 jobs: 10 iteration_limit, 2 failed" in ended.out, ended
    for x, why in ((6, "its process died"), (7, "RuntimeError: seven")):
        assert re.search(rf"^  loss=ways .*guess.x={x} .*: {why}", ended.out, re.MULTILINE), ended.out
    assert re.search(r"^\d jobs as one program: ", ended.out, re.MULTILINE)
    _, children = recorded(folder, address)
    finished = [run for run in children if run.info.status == "FINISHED"]
    assert sorted(int(run.data.params["guess.x"]) for run in finished) == [0, 1, 2, 3, 4, 5, 8, 9, 10, 11]
    for run in finished:
        assert run.data.metrics["x"] == pytest.approx(4 + (int(run.data.params["guess.x"]) - 4) * 0.8**5, rel=1e-5)
    words += ["guess.x=1,7,8,9,10,11,12,13", "sweep.reuse=false", "sweep.fail_fast=true"]
    ended = sweep(folder, address, *launcher, *words)
    assert ended.code == 1 and "1 of " in ended.err and "RuntimeError: seven" in ended.out, ended


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_packs_run_as_programs(tmp_path, address, launcher):
    # Two workers, of which those of joblib stay.
    if launcher == "joblib":
        packs_leave_what_one_program_leaves(tmp_path, address, ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], 8, 8)
    else:
        # As many at once as there are processors for.
        words = ["hydra/launcher=submitit_local", f"hydra.launcher.cpus_per_task={len(os.sched_getaffinity(0)) // 2}"]
        packs_leave_what_one_program_leaves(tmp_path, address, words, 2, 4)


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_a_process_that_dies_with_a_pack_loses_one_job_alone(tmp_path, address, launcher):
    one_job_of_a_pack_is_to_blame(tmp_path, address, [f"hydra/launcher={launcher}"])


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_results_are_those_of_one_process(tmp_path, address, launcher):
    comes_to_what_it_should(tmp_path, address, [f"hydra/launcher={launcher}", "sweep.pack=1"])
    assert all(each.stat().st_mode & 0o077 == 0 for each in tmp_path.glob("outputs/sweeps/*/*/.submitit"))


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_a_killed_process_takes_no_other_job_along(tmp_path, address, launcher):
    words = ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
    processors = len(os.sched_getaffinity(0))
    loses_one_job_alone(tmp_path, address, [f"hydra/launcher={launcher}", *words], processors // 2 if words else 1)


@contextmanager
def under_way(folder: Path, address: str, *words: str) -> Iterator[subprocess.Popen]:
    """Start a sweep of two long jobs, and wait until both take steps."""
    line, how = command(folder, address, *words)
    with (folder / "out").open("w") as out:
        process = subprocess.Popen(line, **how, stdout=out, stderr=out, start_new_session=True)
    consoles = "outputs/sweeps/*/*/[0-9]/console.txt"
    try:
        assert wait(lambda: sum("  20  " in file.read_text() for file in folder.glob(consoles)) == 2, 60), (
            folder / "out"
        ).read_text()
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.long
@pytest.mark.parametrize(
    ("launcher", "sent", "pack"),
    [
        ("joblib", signal.SIGKILL, 2),
        ("joblib", signal.SIGTERM, 1),
        ("submitit_local", signal.SIGKILL, 2),
        ("submitit_local", signal.SIGTERM, 1),
    ],
)
def test_nothing_outlives_the_process_that_launched_it(tmp_path, address, launcher, sent, pack):
    rates = ["0.01", "0.02", "0.03", "0.04"][: 2 * pack]
    words = [f"hydra/launcher={launcher}", f"optimizer.learning_rate={','.join(rates)}", f"sweep.pack={pack}", *LONG]
    with under_way(tmp_path, address, *words) as process:
        started = below(process.pid)
        # Two jobs and two recorders at the least.
        assert len(started) >= 4
        process.send_signal(sent)
        assert process.wait(timeout=10) == -sent
        assert wait(lambda: not left(started), 5), left(started)
    (parent,), _ = recorded(tmp_path, address)
    assert parent.info.status == "KILLED" and endings(tmp_path, address) == [("KILLED", "interrupted")] * 2


@pytest.mark.long
@pytest.mark.parametrize("pack", [1, 2])
def test_a_signal_to_one_job_of_submitit_ends_that_job(tmp_path, address, pack):
    rates = ["0.01", "0.02", "0.03", "0.04"][: 2 * pack]
    words = ["hydra/launcher=submitit_local", f"optimizer.learning_rate={','.join(rates)}", f"sweep.pack={pack}"]
    words += ["execution=eager", "tracking.every=100", "stopping.time_limit=8", "max_iterations=1000000"]
    with under_way(tmp_path, address, *words) as process:
        (file,) = tmp_path.glob("outputs/sweeps/*/*/outcomes/*/0.json")
        os.kill(json.loads(file.read_text())["pid"], signal.SIGTERM)
        # As of a run that was interrupted: the same command has something left to do.
        assert process.wait(timeout=90) == 128 + signal.SIGTERM
    (parent,), children = recorded(tmp_path, address)
    endings = {run.data.params["optimizer.learning_rate"]: (run.info.status, run.data.tags["ending"]) for run in children}
    assert endings == {"0.01": ("KILLED", "interrupted")} | dict.fromkeys(rates[1:], ("FINISHED", "time_limit"))
    told = f"{2 * pack} jobs: 1 interrupted, {2 * pack - 1} time_limit"
    assert parent.info.status == "KILLED" and told in (tmp_path / "out").read_text()


@pytest.mark.long
@pytest.mark.parametrize(
    "launcher",
    [
        ["basic"],
        ["joblib", "hydra.launcher.n_jobs=2", "sweep.pack=1"],
        ["submitit_local", "sweep.pack=1"],
    ],
    ids=lambda words: words[0],
)
def test_what_had_ended_before_a_sweep_was_killed_is_left_as_it_was(prepared, launcher):
    address = f"sqlite:///{prepared}/outputs/mlflow.db"
    words = [f"hydra/launcher={launcher[0]}", *launcher[1:], "optimizer.learning_rate=0.01,0.02,0.03,0.04,0.05"]
    line, how = command(prepared, address, *words, "execution=eager", "max_iterations=200", "report=none")
    outcomes = "outputs/sweeps/*/*/outcomes/*/*.json"
    with (prepared / "out").open("w") as out, subprocess.Popen(line, **how, stdout=out, stderr=out) as process:
        assert wait(lambda: sum("ending" in file.read_text() for file in prepared.glob(outcomes)) >= 2, 120)
        started = below(process.pid)
        process.kill()
    assert wait(lambda: not left(started), 20), left(started)
    before = {run.info.run_id: run for run in recorded(prepared, address)[1]}
    done = {run_id: run.to_dictionary() for run_id, run in before.items() if run.info.status == "FINISHED"}
    assert 2 <= len(done) < 5
    folders = [Path(before[run_id].data.tags["folder"]) for run_id in done]
    kept = contents(folders)
    assert len({path.parent for path in kept}) >= len(done)

    again = subprocess.run(line, **how, capture_output=True, check=False)
    assert again.returncode == 0 and f"5 jobs: {len(done)} reused" in again.stdout, again
    after = {run.info.run_id: run for run in recorded(prepared, address)[1]}
    # Those that had begun are the same runs, in the same folders and under the same numbers.
    assert len(after) == 5 and before.keys() <= after.keys()
    assert {run.info.status for run in after.values()} == {"FINISHED"}
    assert {run_id: after[run_id].to_dictionary() for run_id in done} == done
    for run_id, run in before.items():
        assert {key: after[run_id].data.tags[key] for key in ("job", "folder")} == {
            key: run.data.tags[key] for key in ("job", "folder")
        }
    assert contents(folders) == kept
    # Each of the others has been run, and no other.
    assert again.stdout.count("iteration_limit at step 200") == 5 - len(done)


def contents(folders: list[Path]) -> dict[Path, bytes]:
    """Return the files below folders."""
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


@pytest.mark.long
def test_ray_in_a_network_of_its_own(tmp_path):
    code = "import sys, test_launchers; from pathlib import Path; test_launchers.on_ray(Path(sys.argv[1]))"
    # A new network holds nothing but a loopback that is down; Ray, whose services listen on all interfaces, has no other.
    line = ["unshare", "--net", sys.executable, "-c", code, str(tmp_path)]
    env = environment(*(ROOT / "tests" / each for each in ("", "support", "sweeps"))) | {"HOME": str(tmp_path)}
    ended = subprocess.run(line, env=env, capture_output=True, text=True, timeout=600, check=False, start_new_session=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.splitlines()[-1] == "all that was asserted holds"


def on_ray(folder: Path) -> None:
    """Run what is asserted of the others on a Ray cluster, from within a network with only a loopback."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    assert {each.split(":")[0].strip() for each in Path("/proc/net/dev").read_text().splitlines()[2:]} == {"lo"}
    token = [Path(sys.executable).with_name("ray"), "get-auth-token", "--generate"]
    subprocess.run(token, check=True, capture_output=True)
    with tracked(folder) as address, servers.ray(os.environ | {"RAY_AUTH_MODE": "token"}) as head:
        ray = ["hydra/launcher=ray", f"hydra.launcher.ray.init.address={head}"]
        comes_to_what_it_should(new(folder / "same"), address, ray)
        loses_one_job_alone(new(folder / "loses"), address, ray, 1)
        packs_leave_what_one_program_leaves(new(folder / "packs"), address, ray, 8, 8)
        one_job_of_a_pack_is_to_blame(new(folder / "blame"), address, ray)
        with under_way(new(folder / "dies"), address, *ray, "optimizer.learning_rate=0.01,0.02", *LONG) as process:
            process.kill()
        killed = [("KILLED", "interrupted")] * 2
        assert wait(lambda: endings(folder / "dies", address) == killed, 10), endings(folder / "dies", address)
    print("all that was asserted holds")


def new(folder: Path) -> Path:
    """Return a folder, after it was made."""
    folder.mkdir()
    return folder


def endings(folder: Path, address: str, way: int = 0) -> list[tuple[str, str | None]]:
    """Return how a folder's jobs of this way have ended."""
    children = recorded(folder, address)[1]
    return [(run.info.status, run.data.tags.get("ending")) for run in children if run.data.params.get("loss.way") == str(way)]


@pytest.mark.parametrize(("launcher", "extra"), GROUPS.items())
def test_without_an_extra_the_error_names_it(cli, monkeypatch, launcher, extra):
    plugin = {"joblib": "joblib", "ray": "ray", "slurm": "submitit"}[extra]
    monkeypatch.setitem(sys.modules, f"hydra_plugins.hydra_{plugin}_launcher", None)
    ended = cli("-m", "seed=1,2", f"hydra/launcher={launcher}")
    assert ended.code == 1 and ended.err.count("\n") == 1
    assert ended.err.endswith(f"install it with: pip install 'tf-runner[{extra}]'\n")


def test_every_launcher_that_is_named_here_has_its_file():
    assert {file.stem for file in (CONF / "hydra/launcher").glob("*.yaml")} == set(GROUPS)
