"""What goes on for hours in one process does not grow: neither its memory, nor its files, nor its threads."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from conftest import environment

# Within one process: so many short runs, or so many long ones, each recorded; prints what it and its recorder hold then.
CODE = """
import gc, json, os, sys
from pathlib import Path
from hydra import compose, initialize_config_dir
from rich.console import Console
from runner.cli import entry
from runner.config import schema
from runner.tracking import client

def held(pid):
    memory = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    return {"memory": memory, "files": len(os.listdir(f"/proc/{pid}/fd")), "threads": len(os.listdir(f"/proc/{pid}/task"))}

def tell(count):
    gc.collect()
    own, other = held(os.getpid()), held(client.Process.of_this_process().child.pid)
    print(json.dumps({"count": count, "run": own, "recorder": other}), flush=True)

sys.path.append(str(entry.PLUGINS))
schema.register()
runs, told, *words = json.loads(sys.argv[1])
with initialize_config_dir(str(entry.CONF), version_base="1.3"):
    cfg = compose("config", words)
from runner.cli import run
from runner.cli.job import tracker
from runner.tracking.contract import About
from runner.cli.job import about
chosen = dict.fromkeys(("loss", "guess", "optimizer", "strategy", "execution", "tracking"), "-")
console = Console(file=open(os.devnull, "w"))
for i in range(runs):
    cfg.seed = i
    said = about(config.resolved(cfg), chosen, words, Path(f"outputs/runs/{i}"), {})
    result = run.run(cfg, tracker(cfg.tracking), said, chosen, console)
    if i + 1 in told:
        tell(i + 1)
    if i % 500 == 499:
        print(i + 1, file=sys.stderr, flush=True)
client.Process.of_this_process().stop()
os._exit(0)
"""


def soak(folder: Path, runs: int, told: list[int], *words: str) -> list[dict]:
    """Return what the processes hold after each of these numbers of runs."""
    command = [sys.executable, "-c", CODE, json.dumps([runs, told, *words, "report=none"])]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.long
def test_ten_thousand_short_runs_hold_no_more_than_the_first_thousand(tmp_path):
    early, *later = soak(tmp_path, 10_000, [*range(1_000, 11_000, 1_000)], "guess=uniform", "max_iterations=20")
    print(*(json.dumps(each) for each in (early, *later)), sep="\n")
    assert len(later) == 9
    for process, late in product(("run", "recorder"), later):
        assert late[process]["files"] <= early[process]["files"] and late[process]["threads"] <= early[process]["threads"]
        assert late[process]["memory"] < 1.1 * early[process]["memory"], (early, later)


@pytest.mark.long
def test_eight_hours_of_steps_hold_no_more_than_the_first_minutes(tmp_path):
    # A step a millisecond for eight hours.
    many = ["max_iterations=30000000", "tracking.every=100000", "stopping=limit", "optimizer.learning_rate=1e-7"]
    (short,) = soak(tmp_path, 1, [1], "max_iterations=1000000", *many[1:])
    (whole,) = soak(tmp_path, 1, [1], *many)
    for process in ("run", "recorder"):
        assert whole[process]["memory"] < 1.1 * short[process]["memory"] + 64 * 2**20, (short, whole)
