"""What a report says of runs is so: problems, methods, starts, targets, seconds, evaluations and commands of recorded runs."""

from __future__ import annotations

import shlex
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Ended, own_loss, store
from scipy.optimize import rosen
from test_reports import runs_of

from runner.report import command as report
from runner.report import page
from runner.report.tables import answer, describing, fairness, ranking, reading, selection, stability, trajectories
from runner.report.tables.selection import Record, Selection
from runner.trace import Trace
from runner.tracking.store import artifacts

NAN = np.nan
SGD = {"optimizer._target_": "keras.optimizers.SGD", "optimizer.momentum": "0.0"}


class Folder:
    """Recorded runs in a folder: trajectories, and what a store says of them."""

    def __init__(self, path: Path) -> None:
        self.path, self.found = path, []

    def add(self, loss: Any, *, x: Any = None, measured: Any = None, named: Any = None, **said: Any) -> Record:
        """Add a run with these losses row by row; `said` are tags, parameters (with a dot), and metrics (numbers)."""
        loss = np.array(loss, float)
        x = np.arange(len(loss), dtype=float) if x is None else np.array(x, float)
        run_id = f"run{len(self.found)}"
        made = artifacts.Trajectory(self.path / run_id / "trajectory.parquet")
        made.write(Trace(0, x, loss, np.ones_like(x), named or {}, measured or {}))
        assert made.close()
        tags = {"loss": "sphere", "optimizer": "sgd", "strategy": "tape", "ending": "iteration_limit"}
        metrics = {"iterations": len(loss) - 1.0, "best_loss": loss.min(), "last_loss": loss[-1], "best_step": 0.0}
        metrics |= {"last_gradient_norm": 1.0, "seconds_loop": 1.0, "seconds_record": 1.0}
        params = {"optimizer.learning_rate": "0.1", "seed": "0", "max_iterations": str(len(loss) - 1)}
        for key, value in said.items():
            (params if "." in key or key in params else metrics if isinstance(value, float) else tags)[key] = value
        uri = f"file://{self.path / run_id}"
        self.found.append(Record(run_id, "FINISHED", uri, params, tags, metrics))
        return self.found[-1]

    def read(self, known: Any = None) -> reading.Runs:
        """Return the runs as a report has them."""
        return reading.read(None, self.found, known or {}, Selection([each.run_id for each in self.found], "these", None, ""))

    def lines(self) -> list[str]:
        """Return the report's answer."""
        runs = self.read()
        return answer.text(runs, report.computed(runs)).splitlines()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def described(*runs: tuple[dict[str, str], dict[str, str]]) -> pd.DataFrame:
    """Return the frame of runs of these tags and parameters."""
    usual = {"loss": "sphere", "optimizer": "sgd", "strategy": "tape", "ending": "converged"}
    return describing.described([Record(str(i), "", "", params, usual | tags, {}) for i, (tags, params) in enumerate(runs)])


SETS = "runner.losses.data"


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [
        # Data, alike but for their function.
        (
            ({"loss": "ridge", "loss/data": "iris"}, {"loss.data._target_": f"{SETS}.iris"}),
            ({"loss": "ridge", "loss/data": "wine"}, {"loss.data._target_": f"{SETS}.wine"}),
            ["ridge loss/data=iris", "ridge loss/data=wine"],
        ),
        # A function of one's own by _target_, labelled as the file that it overrides.
        (
            ({"loss": "quadratic"}, {"loss._target_": "mine.f"}),
            ({"loss": "quadratic"}, {"loss._target_": "mine.g"}),
            ["quadratic loss._target_=mine.f", "quadratic loss._target_=mine.g"],
        ),
        # The function among the tags, where it is not a parameter.
        (
            ({"loss": "quadratic", "loss._target_": "mine.f"}, {}),
            ({"loss": "quadratic", "loss._target_": "mine.g"}, {}),
            ["quadratic loss._target_=mine.f", "quadratic loss._target_=mine.g"],
        ),
        # The same function, which an earlier version has labelled otherwise.
        (
            ({"loss": "mine.f"}, {"loss._target_": "mine.f"}),
            ({"loss": "quadratic"}, {"loss._target_": "mine.f"}),
            ["mine.f"] * 2,
        ),
        (({"noise": "gaussian"}, {"noise.loss": "1"}), ({"noise": "none"}, {}), ["sphere noise=gaussian", "sphere noise=none"]),
        (
            ({"instance": "random"}, {"instance.seed": "1"}),
            ({"instance": "random"}, {"instance.seed": "2"}),
            ["sphere instance.seed=1", "sphere instance.seed=2"],
        ),
        # What is of the method, the start or the records makes no problem.
        (({}, {"seed": "1", "tracking.every": "1"}), ({"guess": "uniform"}, {"optimizer.momentum": "0.5"}), ["sphere"] * 2),
    ],
)
def test_a_problem_is_all_that_defines_the_loss(first, second, names):
    frame = described(first, second)
    assert frame["problem"].tolist() == names


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [
        (
            ({"optimizer": "custom"}, {"optimizer._target_": "keras.optimizers.Adam"}),
            ({"optimizer": "custom"}, {"optimizer._target_": "keras.optimizers.RMSprop"}),
            ["custom optimizer._target_=keras.optimizers.Adam", "custom optimizer._target_=keras.optimizers.RMSprop"],
        ),
        (
            ({"optimizer": "none", "strategy": "newton"}, {}),
            ({"optimizer": "none", "strategy": "scipy"}, {}),
            ["newton", "scipy"],
        ),
        (
            ({"optimizer": "none", "strategy": "scipy"}, {"strategy.method": "BFGS"}),
            ({"optimizer": "none", "strategy": "scipy"}, {"strategy.method": "CG"}),
            ["scipy strategy.method=BFGS", "scipy strategy.method=CG"],
        ),
        (({"strategy": "tape"}, {}), ({"strategy": "fit"}, {}), ["sgd strategy=tape", "sgd strategy=fit"]),
        (
            ({}, {"optimizer.nesterov": "True"}),
            ({}, {"optimizer.nesterov": "False"}),
            ["sgd optimizer.nesterov=True", "sgd optimizer.nesterov=False"],
        ),
        # Numbers are of the configuration, a clip that is off among them.
        (({}, {"optimizer.clipnorm": "None"}), ({}, {"optimizer.clipnorm": "1.0"}), ["sgd"] * 2),
        (({"execution": "xla"}, {"dtype": "float32"}), ({"execution": "eager"}, {"dtype": "float64"}), ["sgd"] * 2),
        (
            ({"optimizer/learning_rate": "cosine_decay"}, {"optimizer.learning_rate._target_": "keras.schedules.Cosine"}),
            ({}, {"optimizer.learning_rate": "0.1"}),
            ["sgd optimizer/learning_rate=cosine_decay", "sgd optimizer/learning_rate=none"],
        ),
        # Labelled by its file before, by its class since.
        (
            ({"optimizer": "custom", "overrides": "optimizer=custom"}, {"optimizer._target_": "keras.optimizers.Adam"}),
            ({"optimizer": "Adam", "overrides": "seed=1 optimizer=custom"}, {"optimizer._target_": "keras.optimizers.Adam"}),
            ["custom"] * 2,
        ),
    ],
)
def test_a_method_is_its_strategy_its_class_and_what_is_no_number(first, second, names):
    frame = described(first, second)
    assert frame["optimizer"].tolist() == names
    # What is typed to have it again, each time its own.
    assert (len(set(frame["configuration"])) == 1) == (
        len(set(names)) == 1 and "clipnorm" not in str(first) and "xla" not in str(first)
    )


def test_runs_that_repeat_another_count_once(folder):
    """A start is an x0, or a draw of the loss: 30 seeds of one deterministic run are one start."""
    for seed in range(30):
        for rate, step in (("0.1", 0.5), ("0.2", 0.4)):
            folder.add(step ** np.arange(20), seed=str(seed), **{"optimizer.learning_rate": rate}, **SGD)
    runs = folder.read()
    assert (len(runs.frame), runs.count, runs.repeated) == (2, 60, 58)
    assert set(ranking.tables(runs)["ranking"]["runs"]) == {1}
    lines = folder.lines()
    assert lines[0] == "these: 60 runs, 1 problem, 1 method"
    assert any("58 runs of 60 repeat another row by row, and count once with it" in line for line in lines)


def test_starts_are_paired_by_where_they_begin_and_by_what_the_loss_draws(folder):
    gaps = 0.5 ** np.arange(20)
    for i in range(8):
        for optimizer, slower in (("sgd", 1), ("adam", 1.5)):
            x = i + np.arange(20)
            # Seeds differ, and mean nothing to a loss that does not draw.
            seed = str(i if optimizer == "sgd" else 100 + i)
            folder.add(
                gaps ** (1 / slower), x=x, optimizer=optimizer, seed=seed, loss_above_minimum=float(gaps[-1] ** (1 / slower))
            )
    runs = folder.read()
    assert set(runs.frame["draw"]) == {0}
    table = ranking.tables(runs)["ranking"]
    assert table["words"].tolist() == ["best", f"more steps than sgd at 8 of 8 starts (p = {2 / 2**8:.2g})"]
    # One start, of which each seed makes another run: the loss draws.
    drawing = Folder(folder.path / "drawing")
    for seed in range(6):
        drawing.add(gaps * (1 + seed), x=np.arange(20), seed=str(seed), loss_above_minimum=float(gaps[-1] * (1 + seed)))
    assert drawing.read().frame["draw"].tolist() == list(range(6))


@pytest.mark.parametrize("fused", [0, 1, 2])
def test_seconds_of_jobs_that_share_a_program_are_not_compared(folder, fused):
    for i in range(2):
        folder.add(0.5 ** np.arange(20), x=i + np.arange(20), optimizer=("sgd", "adam")[i], seconds_record=float(i >= fused))
    runs = folder.read()
    tables = report.computed(runs)
    measures = set(tables["targets"]["measure"]) | set(runs.to_target) | set(runs.spent)
    assert ("seconds" in measures) == (fused == 0)
    assert ("seconds" in set(tables["fairness"]["mark"])) == (fused == 1)
    assert ("Seconds are left out" in page.resolution(runs)) == (fused > 0)


def test_evaluations_to_a_target_are_those_of_the_rows(folder):
    """A line search evaluates often at first: an average over the run is not what it took until a target."""
    loss, counts = 10.0 ** -np.arange(10), np.array([1, 41, 61, 71, 75, 77, 78, 79, 80, 81])
    named = {"evaluations/loss": counts, "evaluations/gradient": counts - 1, "evaluations/hessian": np.arange(10)}
    folder.add(loss, named=named, strategy="scipy", optimizer="none", loss_above_minimum=1e-9, loss_evaluations=81.0)
    runs = folder.read()
    # Target 10^-i is reached at row i; what is evaluated at one point counts once, Hessians besides.
    assert runs.to_target["evaluations"][0].tolist() == (counts + np.arange(10))[1:9].tolist()
    plain = Folder(folder.path / "plain")
    plain.add(loss, loss_above_minimum=1e-9)
    # Row k after k + 1 of them.
    assert plain.read().to_target["evaluations"][0].tolist() == list(range(2, 10))


def test_of_an_unknown_minimum_the_best_run_wins_nothing_by_being_the_best(folder):
    # A ends lowest, at 1; B at 1.05, and is there first.
    slow = 1 + 2.0 ** -np.arange(40)
    folder.add(slow, optimizer="a", **{"optimizer.learning_rate": "0.1"})
    folder.add(np.maximum(1 + 4.0 ** -np.arange(40), 1.05), optimizer="b")
    runs = folder.read()
    # The least of all runs is the reference, and b comes within 0.1 of it, and not within 0.01.
    assert runs.frame["reference"].tolist() == [slow.min()] * 2
    reached = np.isfinite(runs.to_target["steps"])
    assert reached[:, 0].all() and not reached[:, 1:].any()
    table = ranking.tables(runs)["ranking"]
    # 2^-k ≤ 0.1 at 4, 4^-k at 2.
    assert table["optimizer"].tolist() == ["b", "a"] and table["steps"].tolist() == [2, 4]
    told = next(line for line in folder.lines() if line.startswith("sphere: "))
    assert "reaches 1e-01 above the lowest loss of these runs (the minimum is not known) in 2 steps" in told
    # Where no other comes near, nobody has reached anything.
    alone = Folder(folder.path / "alone")
    alone.add(slow, optimizer="a")
    alone.add(slow + 5, optimizer="b")
    assert not np.isfinite(alone.read().to_target["steps"]).any()
    told = next(line for line in alone.lines() if line.startswith("sphere: "))
    assert "no run but that of the lowest loss reaches a target above the lowest loss of these runs" in told
    assert "the lowest loss, 1, is that of a run of optimizer=a" in told


def test_the_best_of_a_random_loss_is_no_lucky_draw_in_a_report(folder):
    """Of runs of an earlier version, whose best is a draw, the trajectory tells the full loss."""
    luck = np.full(21, -50.0)
    full = np.full((2, 21), NAN)
    full[:, ::5] = [[9, 5, 3, 2, 1.0], [9, 1.5, 1.4, 1.3, 1.2]]
    for i in range(2):
        said = {"best_loss": -50.0, "last_loss": -50.0, "full_loss": float(full[i, -1]), "noise": "gaussian"}
        folder.add(luck, x=i + np.arange(21), measured={"full_loss": full[i]}, optimizer="ab"[i], **said)
    runs = folder.read()
    assert runs.frame["reference"].tolist() == [1, 1] and runs.frame["best_loss"].tolist() == [1, 1.2]
    assert runs.frame["every"].tolist() == [5, 5]
    # Gaps of b: 0.5, 0.4, 0.3, 0.2: nothing within 0.1.
    assert not np.isfinite(runs.to_target["steps"]).any()


def test_the_steps_of_mini_batches_are_said_to_be_multiples(folder):
    for i, every in enumerate((10, 10, 25)):
        full = np.full(101, NAN)
        full[::every] = 2.0 ** -np.arange(0, 101, every)
        said = {"full_loss": float(full[-1]), "loss_above_minimum": float(full[-1])}
        folder.add(np.ones(101), x=i + np.arange(101), measured={"full_loss": full}, seed=str(i), **said)
    runs = folder.read()
    steps = runs.to_target["steps"]
    assert (steps[:2][np.isfinite(steps[:2])] % 10 == 0).all() and (steps[2][np.isfinite(steps[2])] % 25 == 0).all()
    told = page.resolution(runs)
    assert "known every so many steps alone: 25 (sphere)" in told and "are multiples of that (tracking.full_loss_every)" in told
    assert any("(its full loss is known every 25 steps)" in line for line in folder.lines())
    words = fairness.table(runs, stability.table(runs))["words"].tolist()
    assert any("the full loss is known every 10, 25 steps" in each for each in words)


def test_a_random_loss_that_measures_nothing_is_not_compared(folder):
    folder.add(np.arange(5.0), optimizer="a")
    folder.add(-np.arange(5.0), optimizer="b").metrics.pop("best_step")
    runs = folder.read()
    assert runs.frame["optimizer"].tolist() == ["a"] and runs.incomparable == 1
    assert any("only luck could be compared" in line for line in folder.lines())


def test_x_of_many_coordinates_is_read_as_lists_too(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    x = np.arange(60.0).reshape(3, 20)
    fields = {"step": [0, 1, 2], "loss": [3.0, 2.0, 1.0]}
    lists = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 20)
    pq.write_table(pa.table({**fields, "x": lists}), tmp_path / "lists.parquet")
    pq.write_table(pa.table({**fields, **{f"x/{i}": x[:, i] for i in range(20)}}), tmp_path / "columns.parquet")
    seen = [
        trajectories.follow(tmp_path / f"{name}.parquet", 0.0, reading.UNKNOWN, np.arange(3)) for name in ("lists", "columns")
    ]
    assert [each.dimension for each in seen] == [20, 20] and seen[0].start == seen[1].start
    np.testing.assert_array_equal(seen[0].x0, x[0, :16])


LIMIT = 2 / 3


@pytest.mark.parametrize("rates", [[0.1, 0.2, 0.4], [0.3, 0.6], [0.01, 0.02], [0.5, 0.63], [0.5, 0.65]])
def test_no_grid_goes_on_beyond_the_edge_that_the_page_names(folder, rates):
    """Gradient descent on a quadratic of curvature L does not converge from 2/L on."""
    for rate in rates:
        factor = abs(1 - 3 * rate)
        loss = (factor if rate != rates[-1] else 1e-4) ** np.arange(0.0, 40, 2)
        folder.add(loss, **{"optimizer.learning_rate": str(rate)}, **SGD, loss_above_minimum=float(loss[-1]))
    key = reading.of_loss(folder.found[0])
    runs = folder.read({key: reading.Fact(0.0, np.zeros((1, 1)), 3.0)})
    (row,) = stability.table(runs).itertuples()
    assert row.limit == pytest.approx(LIMIT) and row.best == rates[-1]
    if row.best > 0.9 * LIMIT:
        assert row.next == row.at_edge == ""
    else:
        proposed = [float(each) for each in row.next.rpartition("=")[2].split(",")]
        assert len(proposed) == 3 and all(row.best < rate < LIMIT for rate in proposed)
    # Other methods have other edges.
    other = described(({}, {**SGD, "optimizer.momentum": "0.9"}), ({"optimizer": "adam"}, {}), ({}, SGD))
    assert other["descent"].tolist() == [False, False, True]


def the_sweep(client: Any) -> Any:
    """Return the sweep's own run."""
    found = client.search_runs([each.experiment_id for each in client.search_experiments()], "tags.sweep = 'parent'")
    return found[0]


def test_the_command_that_goes_on_is_all_that_the_sweep_was(reported, runs, tmp_path, monkeypatch):
    own_loss(tmp_path, "mine", "import tensorflow as tf\n\ndef loss(x, *, way):\n    return tf.square(x - way)\n")
    monkeypatch.syspath_prepend(tmp_path)
    options = ["--allow-target=mine", f"--config-dir={tmp_path}/conf", "hydra/launcher=fused"]
    words = ["-m", *options, "loss=mine", "+loss.dimension=0"]
    words += ["optimizer.learning_rate=0.01,0.02", "guess=point", "guess.x=-1.0,2.0", "max_iterations=20", "dtype=float64"]
    ended = reported(*words)
    assert ended.code == 0, ended.err
    (command,) = [line for line in ended.out.splitlines() if "go on with" in line]
    given = shlex.split(command.partition("go on with: ")[2])
    assert given[:4] == ["python", "-m", "runner", "-m"]
    assert {each.lstrip("+") for each in words[1:] if "learning_rate" not in each} <= {each.lstrip("+") for each in given}
    rates = given[-1].partition("=")[2]
    assert given[-1].startswith("optimizer.learning_rate=") and rates == "0.04,0.08,0.16"
    again: Ended = reported(*given[3:])
    assert again.code == 0, again.err
    assert {each.data.params["optimizer.learning_rate"] for each in runs()} == {"0.01", "0.02", *rates.split(",")}
    # Of runs without their sweep, too.
    client = store(tmp_path)
    one = the_sweep(client)
    found = selection.records(client, selection.sweep(client, one)._replace(parent=None))
    assert {each.tags["options"] for each in found} == {" ".join(options)}


@pytest.mark.parametrize(
    "words",
    [
        ["loss._target_=mine.loss", "+loss.way=3", "+loss.dimension=0", "guess=point", "guess.x=1"],
        ["optimizer._target_=mine.Descent"],
        ["optimizer=custom", "optimizer._target_=tf_keras.optimizers.SGD", "strategy=minimize"],
        ["strategy=minimize", "strategy._target_=mine.strategy"],
    ],
)
def test_the_command_that_goes_on_is_one_that_runs(reported, runs, tmp_path, monkeypatch, words):
    """What is named by its target is labelled by that, and is no file of a group."""
    code = "import keras\nimport tensorflow as tf\nfrom runner import strategies\n\n\n"
    code += "class Descent(keras.optimizers.SGD):\n    pass\n\n\n"
    code += "def loss(x, *, way):\n    return tf.square(x - way)\n\n\n"
    code += "def strategy(loss, optimizer, x):\n    return strategies.minimize(loss, optimizer, x)\n"
    own_loss(tmp_path, "mine", code)
    monkeypatch.syspath_prepend(tmp_path)
    ended = reported("-m", *words, "optimizer.learning_rate=0.01,0.02", "max_iterations=20", "execution=graph")
    assert ended.code == 0, ended.out
    (command,) = [line for line in ended.out.splitlines() if "go on with" in line]
    given = shlex.split(command.partition("go on with: ")[2])
    assert {each.lstrip("+") for each in words} <= {each.lstrip("+") for each in given}
    again: Ended = reported(*given[3:])
    assert again.code == 0, again.err
    assert len({each.data.params["optimizer.learning_rate"] for each in runs()}) == 5
    # What the answer calls the best can be typed, too.
    best = next(line for line in ended.out.splitlines() if " of optimizer" in line or ": optimizer" in line)
    typed = [word for word in best.split() if word.startswith(("optimizer", "strategy")) and "=" in word]
    assert reported(*words, *(word.rstrip(",") for word in typed), "tracking=none").code == 0


def test_the_claims_of_a_real_sweep_hold_in_its_rows(reported, tmp_path):
    """Adam and gradient descent on Rosenbrock's function, job by job: steps and gaps by the rows' x and SciPy's formula."""
    words = ["-m", "loss=rosenbrock", "guess=uniform", "seed=range(7)", "optimizer=sgd,adam", "max_iterations=150"]
    words += ["optimizer.learning_rate=0.001,0.1", "dtype=float64", "execution=graph", "hydra/launcher=fused"]
    ended = reported(*words)
    assert ended.code == 0, ended.err
    client = store(tmp_path)
    one = the_sweep(client)
    tables = Path(client.download_artifacts(one.info.run_id, "tables"))
    runs = pd.read_parquet(tables / "runs.parquet").set_index("run_id")
    gaps = {}
    for each in selection.records(client, selection.sweep(client, one)):
        rows = pd.read_parquet(Path(each.artifact_uri.removeprefix("file://")) / "trajectory.parquet")
        gaps[each.run_id] = np.minimum.accumulate(np.nan_to_num(rosen(rows[["x/0", "x/1"]].to_numpy().T), nan=np.inf))
    assert len(gaps) == len(runs) == 28
    for i, target in enumerate(reading.TARGETS):
        steps = {run: np.flatnonzero(gap <= target)[0] if (gap <= target).any() else NAN for run, gap in gaps.items()}
        np.testing.assert_array_equal(runs.iloc[:, -8 + i], [steps[run] for run in runs.index])
    for row in pd.read_parquet(tables / "ranking.parquet").itertuples():
        own = runs[runs["configuration"] == row.configuration].iloc[:, -8:]
        assert row.runs == len(own) == 7
        if np.isfinite(row.target):
            steps = own[f"steps_to_{row.target:.0e}"]
            assert row.success_rate == pytest.approx(steps.notna().mean())
            middle = np.sort(steps.fillna(np.inf))[3]
            assert row.steps == middle or (np.isnan(row.steps) and np.isinf(middle))


def test_a_report_of_many_runs_takes_little_memory():
    """A table of 20,000 runs has 30 MB; resampling it a thousand times at once took 8 GB."""
    rng = np.random.default_rng(0)
    steps = np.sort(rng.integers(1, 1000, (20_000, 8)), axis=1)
    runs = runs_of(steps, optimizer=rng.choice(["a", "b"], 20_000).tolist(), problem=rng.choice(["p", "q"], 20_000).tolist())
    tracemalloc.start()
    try:
        tables = report.computed(runs)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(tables["ranking"]) == 4 and peak < 500e6, f"{peak / 1e6:.0f} MB"


def test_rows_are_read_without_tensorflow():
    """A report of others' losses needs none, which takes seconds and half a gigabyte, and prints what it likes."""
    code = "import sys, runner.report.tables.reading, runner.report.page, runner.report; print('tensorflow' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n" and ended.stderr == ""
