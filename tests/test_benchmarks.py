"""What the benchmarks compare does the same work: peers compute the same rows, recorders leave the same table."""

from __future__ import annotations

import sys
import time

import numpy as np
import pytest
import readme
from benchmarks import charts, kills, limits, loop, measure, processes, recorders, recording, report, sides, suite
from benchmarks.measure import Contender, Row, Target
from benchmarks.sides import Cell

from runner.trace import Trace, join

# Rates at which x goes somewhere in a few steps; those that are measured are small.
RATES = {"sgd": 2e-4, "adam": 1e-2}
FEW = [cell._replace(steps=50, rate=RATES[cell.optimizer]) for cell in loop.CELLS]
REACHED = Row("loop", "that", "steps/s", {"runner": np.array([2.0, 4.0, 3.0]), "peer": np.ones(3)}, Target("≥", 1.0))


def ours(cell: Cell, execution: str) -> Trace:
    """Return the rows of our side."""
    kept: list[Trace] = []
    side = sides.ours(cell, execution, kept.append)
    side.prepare()
    side.run()
    return join(kept)


def assert_rows(found, expected) -> None:
    """Compare x, loss and gradient.

    The same formulas in single precision, whose operations each compiler orders and fuses in its own way: each step is off by
    some 1e-7 of the largest number in it, and fifty of them, or a sum over 10,000 coordinates, stay below 1e-5.
    """
    for mine, other in zip(found, expected, strict=True):
        assert mine.dtype == other.dtype == np.float32
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize("cell", FEW, ids=str)
def test_every_peer_takes_our_steps_and_returns_our_rows(cell):
    rows = ours(cell, "xla")
    assert len(rows) == cell.steps and np.abs(rows.x[-1] - rows.x[0]).max() > 0.01
    for rate_as_input in (False, True):
        assert_rows((rows.x, rows.loss, rows.gradient), sides.by_optax(cell, rate_as_input=rate_as_input).run())
    # It returns the x after each step, without the first one.
    x, loss, gradient = sides.by_tfp(cell).run()
    assert_rows((rows.x[1:], rows.loss, rows.gradient), (x[:-1], loss, gradient))


@pytest.mark.parametrize("cell", loop.EAGER, ids=str)
def test_the_guides_loop_is_ours_bit_for_bit(cell):
    rows = ours(cell._replace(steps=20, rate=0.1), "eager")
    guide = sides.by_guide(cell._replace(steps=1, rate=0.1))
    assert [guide.run() for _ in range(19)] == rows.x[1:].tolist()


def test_a_side_can_be_run_again():
    for make in (lambda cell: sides.ours(cell, "xla"), sides.by_optax, sides.by_tfp, sides.by_guide):
        side, ends = make(FEW[1]._replace(steps=3)), []
        for _ in range(2):
            side.prepare()
            ends.append(side.run())
        if ends[0] is not None:
            np.testing.assert_array_equal(ends[0], ends[1])


# That a server gets the same is in test_ui, too.
@pytest.mark.parametrize(
    "place",
    [recording.SQLITE, recording.POSTGRESQL, pytest.param(recording.SERVER, marks=pytest.mark.long)],
    ids=lambda place: place.name,
)
def test_every_recorder_leaves_the_same_table(place):
    with place.open() as store:
        for way in place.ways.values():
            # More than a batch of log_batch takes, where that does not last.
            steps = min(way.steps, 400)
            contender = recorders.contender(store, steps, way.record)
            contender.prepare()
            contender.run()
            of = recorders.columns(steps)
            expected = [
                (key, int(step), float(value), False, store.run_id) for key in of for step, value in zip(*of[key], strict=True)
            ]
            assert store.left() == sorted(expected)


def test_the_suite_runs_and_prints_a_table(capsys):
    before = readme.README.read_text()
    suite.main(["--quick", "--only", "eager,sqlite,second_job"])
    out = capsys.readouterr().out
    assert report.HEAD in out and [line.split("`")[1] for line in out.splitlines() if line.startswith("| `")] == [
        "eager",
        "eager",
        "sqlite",
        "second_job",
    ]
    assert readme.README.read_text() == before


def test_an_unknown_part_is_refused_with_the_names(capsys):
    with pytest.raises(SystemExit):
        suite.main(["--only", "loop,lop"])
    err = capsys.readouterr().err
    assert "--only names lop;" in err and all(name in err for name in suite.PARTS)


def test_the_table_in_the_readme_has_every_part_and_every_cell():
    shown = readme.part(readme.README.read_text(), "benchmarks")[2]
    assert report.HEAD in shown
    for name in suite.PARTS:
        assert f"\n| `{name}` |" in shown, name
    for cell in (*loop.CELLS, *loop.EAGER):
        assert f"| {cell} |" in shown


def test_contenders_run_in_turns_after_one_that_does_not_count():
    seen: list[str] = []
    both = {name: Contender(lambda n=name: seen.append(n), 2.0, lambda n=name: seen.append(f"prepare {n}")) for name in "ab"}
    taken = measure.seconds(both, 2)
    assert seen == ["prepare a", "a", "prepare b", "b"] * 3
    assert {name: len(values) for name, values in taken.items()} == {"a": 2, "b": 2}


def test_a_row_compares_turn_by_turn_and_says_what_is_missed():
    row = REACHED
    assert row.compared.tolist() == [2, 4, 3] and row.reached
    assert report.line(row) == "| `loop` | that | steps/s | 3 (2.5 … 3.5) | peer 1 (1 … 1) | 3.00 × (2.50 … 3.50) | ≥ 1 × |  |"
    most = Row("long", "memory", "MB", {"runner": np.array([700.0]), "peer": np.array([300.0])}, Target("≤", 300, "MB more"))
    assert most.compared.tolist() == [400] and not most.reached
    assert "| **missed: 400 MB more (400 … 400)** | ≤ 300 MB more |" in report.line(most)


def test_a_chart_is_drawn(tmp_path):
    points = {10: {"runner": np.array([1e3, 2e3]), "peer": np.array([1e3, 1e3])}, 100: {"runner": np.array([1e4, 2e4])}}
    lines = charts.lines(points)
    assert [len(x) for x, _ in lines.values()] == [2, 1]
    charts.draw([charts.Panel("one", "steps", "steps per second", lines)] * 2, tmp_path / "new" / "chart.png")
    assert (tmp_path / "new" / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_the_smallest_app_has_as_many_groups_and_files(tmp_path):
    command = processes.smallest_app(tmp_path)
    count = lambda folder: sorted(path.relative_to(folder) for path in folder.rglob("*.yaml"))  # noqa: E731
    assert [path for path in count(readme.CONF) if path.parts[0] != "hydra"] == count(tmp_path / "conf")
    where = processes.Folder(tmp_path)
    where.run(*command, "optimizer=adam")
    where.run(*command, "max_iteration=3", code=1)


def test_a_command_is_killed_until_it_ends(monkeypatch, tmp_path):
    lives, dead = iter([False, False, True, False, True]), []

    class Command:
        def __init__(self, where, *words):
            assert (where, words) == (tmp_path, ("-m", "max_iterations=5"))

        def ends(self, seconds):
            self.seconds = seconds
            return next(lives)

        def kill(self):
            dead.append(self.seconds)

    monkeypatch.setattr(kills, "recorded", lambda where: (str(where), []))
    way = kills.Way("a command", ("-m",), Command, 1.0, 1)
    assert kills.killed(way, tmp_path, 5, 2.0, 9)[::2] == (2, (str(tmp_path), []))
    assert all(2 * low <= seconds <= 2 * high for seconds in dead for low, high in [kills.LIVES])
    # No more often than that.
    assert kills.killed(way, tmp_path, 5, 2.0, 1)[0] == 1 and dead[2:] and next(lives, None) is None


def test_the_memory_of_a_process_includes_its_childrens():
    child = "held = bytearray(b'1') * 50_000_000; import time; time.sleep(0.5)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with processes.folder() as where:
        assert where.peak(sys.executable, "-c", parent) > 50


@pytest.mark.long
def test_the_chain_of_a_step_is_counted_up_to_the_new_x():
    code = """  %1 = fadd float %x, -4.000000e+00
  %2 = fmul float %1, 2.000000e+00
  %3 = fmul float %rate, %2
  %4 = fsub float %x, %3
  %5 = fmul float %1, %1"""
    assert limits.chain(code) == 4
    assert limits.chain(limits.code("runner")) == 4


def test_the_machine_is_as_busy_as_what_runs_on_it():
    def work():
        end = time.process_time() + 0.5
        while time.process_time() < end:
            pass

    found = limits.busy(Contender(work, 1000.0))
    assert found.cores > 0.9 and found.seconds >= 0.5 and found.rows < 2000
