"""An interrupted run goes on from its checkpoint, and every number is what it is in a run that nothing disturbed."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import disks
import numpy as np
import pytest
from commands import WARM
from conftest import CONF
from hydra import compose, initialize_config_dir

from runner import checkpoints, experiment, loop
from runner.checkpoints import Checkpoints
from runner.config import schema
from runner.config.parts import parts
from runner.errors import UserError
from runner.loop import Ending, Result
from runner.system import folders
from runner.trace import Trace, join

ROSENBROCK = ["loss=rosenbrock", "max_iterations=24", "execution.chunk=7", "tracking=none"]
RUNS = {
    "sgd": ["optimizer.learning_rate=0.001"],
    "adam": ["optimizer=adam"],
    "minimize": ["strategy=minimize", "optimizer=adam"],
    "float64": ["dtype=float64", "optimizer=adam"],
    "newton": ["strategy=newton", "optimizer=none"],
    "gauss_newton": ["strategy=gauss_newton", "optimizer=none"],
    "schedule": ["optimizer=adam", "optimizer/learning_rate=cosine_decay"],
    "noise": ["noise=gaussian", "optimizer=adam"],
    "average": ["optimizer=adam", "optimizer.use_ema=true", "strategy.average=true"],
    "look_back": ["optimizer=adam", "stopping=plateau"],
    "tf_keras": ["optimizer=custom", "optimizer._target_=tf_keras.optimizers.Adam"],
    "tf1": ["optimizer=custom", "optimizer._target_=tensorflow.compat.v1.train.AdamOptimizer"],
    "minibatch": ["loss=logistic_regression", "loss.batch_size=16"],
}
# What one execution shows for all, and what each shows for itself; the others are for CI.
QUICK = {("xla", name) for name in ("adam", "newton", "schedule", "noise", "average", "look_back", "tf1", "minibatch")}
QUICK |= {("graph", "adam"), ("eager", "adam"), ("eager", "tf1")}
ALL = [
    pytest.param(execution, name, marks=[] if (execution, name) in QUICK else pytest.mark.long)
    for execution in ("eager", "graph", "xla")
    for name in RUNS
]


@pytest.fixture(scope="module")
def composed() -> Iterator[Callable[..., Any]]:
    """Give a function that composes a configuration from overrides."""
    schema.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield lambda *words: compose("config", [*ROSENBROCK, *words])


@pytest.fixture(scope="module", autouse=True)
def same_chunks() -> Iterator[None]:
    """Take steps 1, 7, 7 … at a time, however long they take here."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "SHORT", np.inf)
        yield


def at(step: int, taken: Callable[[], int]) -> Callable[[], str | None]:
    """Return a signal that comes when so many steps are taken."""
    return lambda: "SIGTERM" if taken() >= step else None


def part(cfg: Any, folder: Path, recorded: int = 0, until: int | None = None, every: float = 0) -> tuple[Trace, Result]:
    """Run until so many steps are taken, from the folder's checkpoint where rows are recorded; return the rows."""
    experiment.PROGRAMS.kept.clear()
    ready = parts(cfg)
    saves, rows = Checkpoints(folder, ready.program, every), []
    start = saves.restore(recorded) if recorded else None
    taken = lambda: sum(map(len, rows)) + (start.step if start else 0)  # noqa: E731
    signal = at(until, taken) if until else lambda: None
    try:
        result = experiment.run(ready, [rows.append], signal, start=start, save=saves.save)
    finally:
        ready.program.execution.close()
    return join(rows), result


def same(one: Trace, other: Trace) -> None:
    """Assert that rows have the same bits."""
    assert one.start == other.start
    for name, column in one.columns().items():
        np.testing.assert_array_equal(column, other.columns()[name], err_msg=name)


@pytest.mark.parametrize(("execution", "name"), ALL)
def test_a_run_goes_on_bit_for_bit(composed, tmp_path, name, execution):
    cfg = composed(f"execution={execution}", *RUNS[name])
    whole, end = part(cfg, tmp_path / "whole")
    first, stopped = part(cfg, tmp_path / "parts", until=10)
    assert stopped.ending is Ending.INTERRUPTED and 10 <= stopped.iterations < 24
    assert len(first) == stopped.iterations + 1
    same(whole[: len(first)], first)
    rest, again = part(cfg, tmp_path / "parts", recorded=len(first))
    assert rest.start == stopped.iterations, "it began elsewhere than where it was interrupted"
    same(whole[rest.start :], rest)
    same(end.best, again.best)
    assert (end.ending, end.stopped_by, end.evaluations) == (again.ending, again.stopped_by, again.evaluations)


def test_what_no_variable_holds_is_computed_again(composed, tmp_path):
    cfg = composed("strategy=scipy", "optimizer=none")
    whole, _ = part(cfg, tmp_path / "whole")
    first, _ = part(cfg, tmp_path / "parts", until=10)
    assert not (tmp_path / "parts").exists()
    rest, _ = part(cfg, tmp_path / "parts", recorded=len(first))
    same(whole[: len(first)], first)
    same(whole, rest)


@pytest.fixture(scope="module")
def saved(composed, tmp_path_factory) -> tuple[Any, Path, Trace]:
    """Return a run that was interrupted after step 8 (and saved at 1 too), the folder of its checkpoints, and its rows."""
    cfg, folder = composed("optimizer=adam"), tmp_path_factory.mktemp("saved") / "checkpoint"
    rows, _ = part(cfg, folder, until=8)
    assert {path.name for path in folder.iterdir()} == {"1", "8"}, "the one before is not kept, or an older one is"
    return cfg, folder, rows


@pytest.fixture
def interrupted(saved, tmp_path) -> tuple[Any, Path, Trace]:
    """Return the same, of a copy of the folder."""
    cfg, folder, rows = saved
    return cfg, shutil.copytree(folder, tmp_path / "checkpoint"), rows


def test_a_checkpoint_is_for_its_owner_alone(interrupted):
    _, folder, _ = interrupted
    assert folder.stat().st_mode & 0o077 == 0


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def replace(file: Path) -> None:
    file.unlink()
    file.symlink_to("/etc/hostname")


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink, replace])
@pytest.mark.parametrize("file", sorted({*checkpoints.FILES, checkpoints.SUMS}))
def test_a_damaged_checkpoint_gives_way_to_the_one_before(interrupted, caplog, file, damage):
    cfg, folder, rows = interrupted
    damage(folder / "8" / file)
    saves = Checkpoints(folder, parts(cfg).program, None)
    state = saves.restore(len(rows))
    assert state is not None and state.step == 1
    (warning,) = caplog.messages
    # A list of sums that is another's, or is changed within a sum, is told of by the file of that sum.
    assert str(folder / "8" / ("" if file == checkpoints.SUMS else file)) in warning
    assert warning.endswith("; the one before is looked for")


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink, replace])
@pytest.mark.parametrize("file", sorted({*checkpoints.FILES, checkpoints.SUMS}))
def test_where_both_are_damaged_in_any_way_none_is_taken(interrupted, caplog, file, damage):
    _, folder, _ = interrupted
    for step in ("1", "8"):
        damage(folder / step / file)
    with pytest.raises(UserError, match=r"^checkpoint: none of .* is whole; set resume=false, which starts anew$"):
        checkpoints.newest(folder, checkpoints.read)
    assert len(caplog.messages) == 2


def test_a_run_goes_on_bit_for_bit_from_the_checkpoint_before(interrupted, tmp_path):
    cfg, folder, rows = interrupted
    flip(folder / "8" / checkpoints.ROWS)
    rest, _ = part(cfg, folder, recorded=len(rows))
    whole, _ = part(cfg, tmp_path / "whole")
    assert rest.start == 1
    same(whole[1:], rest)


def test_where_all_are_damaged_nothing_begins_again_in_silence(interrupted):
    cfg, folder, rows = interrupted
    for step in ("1", "8"):
        truncate(folder / step / checkpoints.STATE)
    with pytest.raises(UserError, match=r"^checkpoint: none of .* is whole; set resume=false, which starts anew$"):
        part(cfg, folder, recorded=len(rows))
    with pytest.raises(UserError, match="resume=false"):
        part(cfg, folder, recorded=len(rows))


def test_rows_that_were_lost_are_computed_again(interrupted):
    cfg, folder, _ = interrupted
    rest, _ = part(cfg, folder, recorded=5)
    assert rest.start == 1


def test_only_the_folder_itself_says_where_a_checkpoint_is(interrupted):
    cfg, folder, rows = interrupted
    (folder / "checkpoint").write_text('model_checkpoint_path: "/etc/passwd"\n')
    (folder / "10").symlink_to("/etc")
    rest, _ = part(cfg, folder, recorded=len(rows))
    assert rest.start == 8


@pytest.mark.parametrize("whose", ["everyone's", "another's"])
def test_a_folder_that_others_may_write_to_is_refused(interrupted, monkeypatch, whose):
    cfg, folder, rows = interrupted
    if whose == "everyone's":
        folder.chmod(0o777)
    else:
        mine = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    with pytest.raises(UserError, match="must be a folder that is yours"):
        part(cfg, folder, recorded=len(rows))


def test_no_pickle_is_read(interrupted, monkeypatch):
    cfg, folder, rows = interrupted

    class Canary:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(folder / "canary"),)

    file = folder / "8" / checkpoints.ROWS
    np.savez(file, allow_pickle=True, **{"best/x": np.array([Canary()], dtype=object)})
    sums = folder / "8" / checkpoints.SUMS
    sums.write_text(json.dumps(json.loads(sums.read_text()) | {checkpoints.ROWS: checkpoints.digest(file)}))
    with pytest.raises(ValueError, match="pickle"):
        part(cfg, folder, recorded=len(rows))
    assert not (folder / "canary").exists()


@pytest.mark.parametrize("size", ["4k", "12k", "20k", "40k"])
def test_a_full_disk_is_told_in_one_line(composed, tmp_path, size):
    cfg, told = (
        composed("optimizer=adam"),
        "checkpoint: .* cannot be written: .*No space left on device.* bytes are free.*make room",
    )
    with disks.small(tmp_path / "disk", size) as disk, pytest.raises(UserError, match=told) as raised:
        part(cfg, disk / "checkpoint")
    assert "\n" not in str(raised.value) and str(tmp_path / "disk") in str(raised.value)


class Killed(BaseException):
    """As a kill leaves things: nothing after it runs."""


CALLS = {"rename": Path, "remove_step": folders, "write": checkpoints, "digest": checkpoints, "flush": checkpoints}


@pytest.mark.parametrize("call", CALLS)
def test_a_kill_while_saving_leaves_a_whole_checkpoint(composed, tmp_path, monkeypatch, call):
    cfg, folder = composed("optimizer=adam"), tmp_path / "checkpoint"
    original = getattr(CALLS[call], call)

    def killed(*words: Any, **keys: Any) -> Any:
        if (folder / "8").is_dir():
            raise Killed
        return original(*words, **keys)

    with monkeypatch.context() as patched:
        patched.setattr(CALLS[call], call, killed)
        with pytest.raises(Killed):
            part(cfg, folder)
    goes_on(cfg, folder, tmp_path)


def killed_in(call: str, folder: Path) -> None:
    """Kill this process within a call, while it saves what comes after step 8."""
    original = getattr(CALLS[call], call)

    def killed(*words: Any, **keys: Any) -> Any:
        if (folder / "8").is_dir():
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*words, **keys)

    setattr(CALLS[call], call, killed)
    loop.SHORT = np.inf
    schema.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        part(compose("config", [*ROSENBROCK, "optimizer=adam"]), folder)


@pytest.mark.long
@pytest.mark.parametrize("call", CALLS)
def test_a_process_that_is_killed_while_saving_leaves_a_whole_checkpoint(composed, tmp_path, call):
    folder = tmp_path / "checkpoint"
    process = WARM.Process(target=killed_in, args=(call, folder))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    goes_on(composed("optimizer=adam"), folder, tmp_path)


def goes_on(cfg: Any, folder: Path, tmp_path: Path) -> None:
    """Assert that a run which died while it saved what comes after step 8 goes on bit for bit, and leaves no half of it."""
    rest, _ = part(cfg, folder, recorded=16)
    whole, _ = part(cfg, tmp_path / "whole")
    assert rest.start in (8, 15)
    same(whole[rest.start :], rest)
    assert not list(folder.glob("*.tmp"))
