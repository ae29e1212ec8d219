"""Ctrl-C at a sweep, in each of its phases: it ends at once, and the same command again has each job recorded once."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import commands
import processes
import pytest
from conftest import environment, history

# Python imports this module as it starts. When the command is in all these functions, it is interrupted as by a terminal: all
# processes of its group at once.
AT = """
import os, signal, sys, threading, time
from pathlib import Path

def functions(frame):
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        yield f"{file.parent.name}.{file.stem}.{frame.f_code.co_name}"
        frame = frame.f_back

def interrupt(wanted, command):
    while not wanted <= {*functions(sys._current_frames()[command])}:
        time.sleep(0.001)
    Path("hit").write_text(str(time.time()))
    os.killpg(0, signal.SIGINT)

# Of this process alone: those that it starts find no such variable.
if wanted := os.environ.pop("INTERRUPT_IN", None):
    # A shell's background job, as these tests may be one, ignores SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    of = {*wanted.split()}, threading.main_thread().ident
    threading.Thread(target=interrupt, args=of, daemon=True).start()
"""
# What the command is in: functions by folder and module. When Keras is imported, TensorFlow has printed already.
PHASES = {
    "composing": "sweeps.sweep.launch sweeps.composer.compose",
    "importing": "tensorflow.__init__.<module> keras.__init__.<module>",
    "grouping": "fused.groups.fault polymorphic_function.tracing_compilation.trace_function",
    "running": "fused.lockstep.run",
    "recording": "tracking.sweep_client.record tracking.process.answer",
    "reporting": "sweeps.sweep.report",
}
JOBS, STEPS = 300, 10
SWEEP = ("-m", "guess=uniform", f"max_iterations={STEPS}")
# Seconds, of a machine that does other things too: a run is given four to take its step and one to be recorded.
SOON = 15


def interrupted(folder: Path, functions: str, *words: str) -> tuple[int, str, str]:
    """Interrupt a command there; returns its exit code and what it printed. Nothing of it is left behind."""
    (folder / "sitecustomize.py").write_text(AT)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    of_it = environment(folder) | {"INTERRUPT_IN": functions}
    command = [sys.executable, "-m", "runner", *words]
    with subprocess.Popen(command, cwd=folder, env=of_it, text=True, start_new_session=True, **pipes) as child:
        others: dict[int, str] = {}
        while child.poll() is None and not (folder / "hit").exists():
            others |= processes.below(child.pid)
            time.sleep(0.05)
        out, err = child.communicate(timeout=60)
    assert (folder / "hit").exists(), out + err
    assert time.time() - float((folder / "hit").read_text()) < SOON
    assert processes.wait(lambda: not processes.left(others), SOON), processes.left(others)
    return child.returncode, out, err


def recorded_once(folder: Path, jobs: int) -> None:
    """Assert that the store has one run of each job, FINISHED, and each of its rows once."""
    uri = f"sqlite:///{folder}/outputs/mlflow.db"
    found = commands.runs(uri)
    assert sorted(int(run.data.params["seed"]) for run in found) == list(range(jobs))
    assert {run.info.status for run in found} == {"FINISHED"}
    for run in found[:: max(1, jobs // 20)]:
        assert set(history(folder, run.info.run_id, "loss")) == set(range(STEPS + 1))


def hold(prepared: Path, cli: Callable[..., Any], functions: str, launcher: str, jobs: int) -> tuple[str, str]:
    """Interrupt a sweep there, and have the same command finish it; returns what the first and the second printed."""
    words = (*SWEEP, f"seed=range({jobs})", f"hydra/launcher={launcher}")
    code, out, err = interrupted(prepared, functions, *words)
    assert (code, err) == (130, ""), out + err
    again = cli(*words)
    assert again.code == 0, again.err
    recorded_once(prepared, jobs)
    return out, again.out


def test_ctrl_c_while_jobs_are_composed(prepared, cli):
    out, again = hold(prepared, cli, PHASES["composing"], "fused", 50)
    assert out == "" and "50 jobs: 50 new" in again


@pytest.mark.long
@pytest.mark.parametrize("phase", [name for name in PHASES if name != "composing"])
def test_ctrl_c_in_a_phase_of_a_fused_sweep(prepared, cli, phase):
    out, again = hold(prepared, cli, PHASES[phase], "fused", JOBS)
    if phase == "running":
        assert f"{JOBS} jobs: {JOBS} interrupted; " in out
        assert re.search(rf"\ncontinues {JOBS} jobs as one program from step", again)
    if phase == "reporting":
        assert re.search(r"\nno report; it is made by python -m runner\.report \w{32}\n$", out)
    if phase in ("recording", "reporting"):
        # What lay in the pipe was recorded yet.
        assert f"{JOBS} jobs: {JOBS} reused" in again


@pytest.mark.long
@pytest.mark.parametrize("functions", [PHASES["importing"], "runner.loop.run"])
def test_ctrl_c_at_a_job_of_a_sweep_of_one_after_another(prepared, cli, functions):
    hold(prepared, cli, functions, "basic", 6)
