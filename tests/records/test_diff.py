"""Two runs held against each other, by rows made by hand and by the command; and a run held against its own record."""

from __future__ import annotations

import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Ended, store

from runner import diff, records, verify
from runner.records import compare, parting
from runner.trace import Trace


def rows(x, loss=None, gradient=None, dtype=np.float64) -> Trace:
    """Return rows of a scalar x, of the loss x² where no other is given."""
    x = np.array(x, dtype)
    return Trace(
        0, x, x**2 if loss is None else np.array(loss, dtype), 2 * x if gradient is None else np.array(gradient, dtype)
    )


def test_the_first_parting_is_the_earliest_row_and_there_the_first_that_came_about():
    a = rows([8, 4, 2, 1])
    assert compare.compare(a, a, 0.0).equal
    # The gradient differs in a row before the update that it led to.
    assert compare.compare(a, rows([8, 4, 3, 1], gradient=[16, 6, 4, 2]), 1e-3).parting == (1, "gradient")
    assert compare.compare(a, rows([8, 4, 3, 1]), 1e-3).parting == (2, "update")
    # Another loss of the same points, and another guess, which no update led to.
    assert compare.compare(a, rows([8, 4, 2, 1], loss=[64, 16, 4, 2]), 1e-3).parting == (3, "loss")
    assert compare.compare(a, rows([7, 3, 1, 0], loss=a.loss, gradient=a.gradient), 1e-3).parting == (0, "x")


def test_the_tolerance_is_relative_to_the_largest_so_far():
    a = rows([8, 4, 2, 1])
    b = rows([8, 4, 2, 1], loss=[64, 16, 4, 1.5])
    found = compare.compare(a, b, 0.01)
    loss = found.quantities["loss"]
    assert found.equal and loss.farthest == 3 and loss.apart[3] == 0.5 and loss.relative[3] == 0.5 / 64
    assert compare.compare(a, b, 0.0).parting == (3, "loss")
    assert compare.compare(a, b, 0.5 / 64).equal
    assert not compare.compare(a, b, 0.49 / 64).equal


def test_an_update_may_differ_by_a_rounding_of_x():
    # Steps of 1e-4 at 1000 in float32, whose spacing there is 6e-5.
    exact = 1000 + 1e-4 * np.arange(50)
    a, b = rows(exact, loss=exact, gradient=exact), rows(exact, loss=exact, gradient=exact, dtype=np.float32)
    found = compare.compare(a, b, compare.default_tolerance(a, b))
    assert found.equal and found.quantities["update"].relative.max() > 0.1


def test_what_is_not_finite_equals_itself_alone():
    a = rows([1, np.inf, np.nan], loss=[1, 2, -np.inf], gradient=[1, 1, 1])
    assert compare.compare(a, a, 0.0).equal
    assert compare.compare(a, rows([1, np.inf, np.nan], loss=[1, 2, np.inf], gradient=[1, 1, 1]), 0.5).parting == (2, "loss")
    assert compare.compare(a, rows([1, 5, np.nan], loss=[1, 2, -np.inf], gradient=[1, 1, 1]), 0.5).parting == (1, "update")


def test_a_longer_run_differs_and_its_rows_beyond_are_not_compared():
    a, b = rows([8, 4, 2, 1]), rows([8, 4, 2])
    found = compare.compare(a, b, 0.0)
    assert found.parting is None and not found.equal and found.rows == (4, 3)
    assert parting.sentence(found) == "the same bit for bit, in all 3 rows that both have; A goes on from step 2 to 3"
    vector = Trace(0, np.ones((3, 2)), np.ones(3), np.ones((3, 2)))
    with pytest.raises(ValueError, match="x has 1 numbers in one run and 2 in the other"):
        compare.compare(a, vector, 0.0)


def test_the_smallest_difference_is_one():
    tiny = 5e-324
    assert compare.compare(rows([tiny, 0]), rows([0, 0]), 0.0).parting == (0, "x")


@pytest.fixture
def command(cli, runs, tmp_path, monkeypatch, capfd):
    """Run a command on recorded runs; `cli` makes them, in the same folder."""

    def run(main, *words: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["runner", *words])
        try:
            code = main()
        except SystemExit as exit:
            code = exit.code
        return Ended(code, *capfd.readouterr())

    return run


@pytest.fixture
def made(cli, runs):
    """Make one run for each of these words, and return their ids."""

    def make(*commands: str) -> list[str]:
        for words in commands:
            assert cli(*words.split()).code == 0
        return [run.info.run_id for run in runs()]

    return make


def test_minimize_is_tape_and_the_dtypes_and_executions_are_one_within_roundings(command, made, tmp_path):
    words = ("strategy=tape", "strategy=minimize", "dtype=float64", "execution=eager", "max_iterations=10")
    tape, minimize, double, eager, short = made(*words)
    ended = command(diff.main, tape[:12], minimize[:12])
    assert ended.code == 0 and ended.err == ""
    assert "the same within 1.19e-05, in all 101 rows" in ended.out and "runner.strategies.minimize" in ended.out
    # Beneath the two names, which say how each was made, is only what differs.
    assert "learning_rate" not in ended.out.partition("\n\n")[2]
    assert command(diff.main, tape, minimize, "--tolerance", "0").code == 0
    for other in (double, eager):
        assert command(diff.main, tape, other).code == 0
    ended = command(diff.main, tape, double, "--tolerance", "0", "--picture", "exact.png")
    # The first update, 0.8, is no number of float32.
    assert ended.code == 1 and "they part at step 1: the update" in ended.out
    assert (tmp_path / "exact.png").read_bytes()[:4] == b"\x89PNG"
    ended = command(diff.main, tape, short)
    assert ended.code == 1 and "in all 11 rows that both have; A goes on from step 10 to 100" in ended.out


def test_two_learning_rates_part_at_the_first_update(command, made, tmp_path):
    a, b = made("optimizer.learning_rate=0.1", "optimizer.learning_rate=0.2")
    ended = command(diff.main, a, b)
    assert ended.code == 1 and ended.err == ""
    # x goes from 0 by 0.1 · 8 in one and by 0.2 · 8 in the other.
    assert (
        "they part at step 1: the update that led there, x[1] - x[0], is 0.8 apart, 0.5 of its size, and so do x, loss, "
        "gradient (not within 1.19e-05)" in ended.out
    )
    assert "optimizer.learning_rate  0.1  0.2" in ended.out and "dtype" not in ended.out
    (picture,) = tmp_path.glob("outputs/diffs/*.png")
    assert picture.name == f"{a[:8]}-{b[:8]}.png" and f"picture: outputs/diffs/{picture.name}" in ended.out


def test_what_cannot_be_compared_is_told_in_one_line(command, made, monkeypatch):
    a, b = made("max_iterations=3", "loss=booth max_iterations=3")
    for words, told in (
        ((a, b), "the runs cannot be compared: x has 1 numbers in one run and 2 in the other"),
        ((a, "zz"), "no run's id begins with 'zz' in sqlite:///"),
        ((a, "%"), "a run is named by its id, or the beginning of it, got '%'"),
        ((a,), "the following arguments are required: RUN; --help tells more"),
        ((a, b, "--tolerance", "-1"), "argument --tolerance: must be 0 or more, got -1; --help tells more"),
        ((a, b, "--tracking-uri", "sqlite:///none.db"), "there is no store sqlite:///none.db; name it with --tracking-uri"),
    ):
        ended = command(diff.main, *words)
        assert ended.code == 2 and ended.err.startswith(f"error: {told}") and ended.err.count("\n") == 1, ended.err


def test_a_run_comes_out_again_bit_for_bit(command, made):
    for run_id in made(
        "strategy=tape",
        "loss=rosenbrock optimizer=adam optimizer/learning_rate=cosine_decay noise=gaussian guess=uniform seed=3",
        "loss=booth dtype=float64 execution=eager stopping=[gradient_norm] optimizer.learning_rate=0.01",
        "stopping=time_limit stopping.time_limit=0.05 execution=eager max_iterations=100000",
        "optimizer.learning_rate=1.5 max_iterations=200",
    ):
        ended = command(verify.main, run_id)
        assert ended.code == 0 and ended.err == "", ended
        assert "the same bit for bit" in ended.out and "versions and commit are the same" in ended.out


def test_a_trajectory_that_was_tampered_with_is_found(command, made, tmp_path):
    (run_id,) = made("max_iterations=20")
    (path,) = tmp_path.glob("outputs/artifacts/*/artifacts/trajectory.parquet")
    table = pq.read_table(path)
    loss = table["loss"].to_numpy().copy()
    loss[7] = np.nextafter(loss[7], np.float32(np.inf))
    path.unlink()
    pq.write_table(table.set_column(table.column_names.index("loss"), "loss", pa.array(loss)), path)
    store(tmp_path).set_tag(run_id, "version.keras", "3.0.0")
    ended = command(verify.main, run_id)
    assert ended.code == 1 and "they part at step 7: loss is" in ended.out and "version.keras was 3.0.0, is" in ended.out
    assert ended.out.endswith(f"\npicture: outputs/diffs/{run_id[:8]}-again.png\n")
    (tmp_path / f"outputs/diffs/{run_id[:8]}-again.png").unlink()
    ended = command(verify.main, run_id, "--tolerance", "1e-6")
    assert ended.code == 0 and "picture" not in ended.out and not [*tmp_path.glob("outputs/diffs/*")]
    assert command(verify.main, run_id, "--tolerance", "1e-6", "--picture", "same.png").code == 0
    assert (tmp_path / "same.png").read_bytes()[:4] == b"\x89PNG"


def test_a_configuration_that_is_not_the_runs_is_not_run(command, made, tmp_path):
    (run_id,) = made("max_iterations=3")
    (path,) = tmp_path.glob("outputs/artifacts/*/artifacts/config.yaml")
    path.write_text(path.read_text().replace("runner.losses.quadratic", "os.abort"))
    ended = command(verify.main, run_id)
    assert ended.code == 2
    assert ended.err == f"error: run {run_id}: config.yaml and the run's parameters differ in loss._target_\n"


def test_a_run_without_an_end_is_not_run_again(command, made, tmp_path):
    (run_id,) = made("max_iterations=3")
    store(tmp_path).delete_tag(run_id, "ending")
    ended = command(verify.main, run_id)
    assert ended.code == 2 and "came to no end that could come out again" in ended.err
    assert records.read(store(tmp_path), run_id).rows.x.shape == (4, 1)
