"""A sweep's report: its statistics against formulas and by hand, and the command on real sweeps."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Ended, store
from scipy import stats

from runner import records
from runner.pictures import style
from runner.report import command as report
from runner.report import text
from runner.report.page import figures
from runner.report.tables import (
    answer,
    describing,
    facts,
    fairness,
    profiles,
    ranking,
    reading,
    selection,
    stability,
    trajectories,
)

NAN = np.nan


def runs_of(steps, *, optimizer=None, problem="p", rate=0.1, **columns) -> reading.Runs:
    """Return runs of one problem and known minimum by their steps to the first targets; the others are not reached."""
    given = np.array(steps, float).reshape(len(steps), -1)
    reached = np.full((len(steps), len(reading.TARGETS)), NAN)
    reached[:, : given.shape[1]] = given
    frame = pd.DataFrame({"optimizer": optimizer or "sgd", "problem": problem, "loss": "p"}, index=range(len(steps)))
    frame = frame.assign(learning_rate=rate, minimum=0.0, limit=NAN, ending="iteration_limit", max_iterations=100)
    frame = frame.assign(iterations=100, evaluations=101, rows=101, dimension=1, seed=0, last_loss=0.0, best_loss=0.0)
    frame = frame.assign(choice=frame["optimizer"], reference=0.0, draw=0, every=1, fused=False, words="", options="")
    frame = frame.assign(start=[f"s{i}" for i in range(len(frame))]).assign(**columns)
    frame["configuration"] = "optimizer=" + frame["optimizer"] + " rate=" + frame["learning_rate"].astype(str)
    gap = np.ones((len(frame), 2), np.float32)
    to_target = {"steps": reached, "evaluations": reached + 1, "seconds": reached / 10}
    spent = {"evaluations": np.tile([1.0, 101.0], (len(frame), 1)), "seconds": np.tile([0.0, 10.0], (len(frame), 1))}
    return reading.Runs(frame, reading.TARGETS, to_target, np.array([0, 100]), gap, spent, "sweep x", reached + 1)


def test_the_lowest_gap_and_the_first_rows_that_reach_targets():
    best = trajectories.lowest(np.array([5, 3, NAN, 4, 1.0625, 1.0005, 0.5]), 1.0)
    np.testing.assert_allclose(best, [4, 2, 2, 2, 0.0625, 0.0005, 0])
    np.testing.assert_array_equal(trajectories.first(best, np.array([4, 2, 0.1, 0.0625, 1e-8])), [0, 1, 4, 4, 6])
    np.testing.assert_array_equal(trajectories.first(best[:6], np.array([1e-3, 1e-4])), [5, NAN])
    assert trajectories.lowest(np.array([NAN, np.inf]), 0.0).tolist() == [np.inf, np.inf]


def test_performance_profile_of_dolan_and_more_by_hand():
    # Three problems; ratios of a: 1, 2, never; of b: 2, 1, 1.
    costs = pd.DataFrame({"a": [1, 4, NAN], "b": [2, 2, 3]})
    made = profiles.profile(profiles.ratios(costs), "tau")
    assert made[made["optimizer"] == "a"][["tau", "fraction"]].values.tolist() == [[1, 1 / 3], [2, 2 / 3]]
    assert made[made["optimizer"] == "b"][["tau", "fraction"]].values.tolist() == [[1, 2 / 3], [2, 1]]


def test_what_is_never_solved_is_a_share_of_nothing():
    made = profiles.profile(pd.DataFrame({"a": [1.0, 2.0], "b": [NAN, NAN]}), "tau")
    assert made["fraction"].tolist() == [0.5, 1, 0] and np.isnan(made["tau"].iloc[2])


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (1, "1"),
        (12345.0, "12,345"),
        (1234.56, "1,235"),
        (0.123456, "0.1235"),
        (1e-8, "1e-08"),
        (np.inf, "∞"),
        (NAN, "–"),
        (2e20, "2e+20"),
    ],
)
def test_numbers_as_people_read_them(value, told):
    assert text.number(value) == told


def test_long_numbers_in_words_are_rounded():
    words = "optimizer=adam_2 optimizer.learning_rate=0.31622776601683794 optimizer.epsilon=1.2345678e-07 seed=20240101 a=0.125"
    assert (
        text.rounded(words)
        == "optimizer=adam_2 optimizer.learning_rate=0.3162 optimizer.epsilon=1.235e-07 seed=20240101 a=0.125"
    )


def test_the_next_grid_of_a_group_is_of_its_optimizers():
    runs = runs_of([NAN, 5, 3], rate=[0.01, 0.1, 1.0], last_loss=[0.5, 0.01, 0.01], start="s", optimizer=["b", "a", "a"])
    runs = report.compared_by(replace(runs, frame=runs.frame.assign(strategy="tape")), "strategy")
    row = stability.table(runs).iloc[0]
    assert row.optimizer == "strategy=tape" and row.next.endswith("optimizer=b,a optimizer.learning_rate=10,100,1000")


def test_one_thing_is_not_many():
    assert [text.some(count, "step") for count in (0, 1, 1500)] == ["0 steps", "1 step", "1,500 steps"]


def test_data_profile_of_more_and_wild_by_hand():
    # f falls tenfold a step from 1, so that a thousandth is left at step 3, after 4 evaluations: of d = 1, 2 simplex gradients.
    falls = trajectories.first(trajectories.lowest(10.0 ** -np.arange(8), 0.0), reading.TARGETS)
    runs = runs_of([falls, falls + 2], optimizer=["a", "b"], start="s")
    made = profiles.data(runs, np.array([True, True]))
    assert made[["optimizer", "alpha", "fraction"]].values.tolist() == [["a", 2, 1], ["b", 3, 1]]


def test_runtimes_as_coco_has_them_by_hand():
    # Two starts and eight targets: of 16 pairs one is reached at evaluation 2, two at 4, divided by d = 2.
    runs = runs_of([[1, 3], [3, NAN]], dimension=2)
    made = profiles.ecdf(runs, np.array([True, True]))
    made = made[made["measure"] == "evaluations"]
    assert made[["budget", "fraction"]].values.tolist() == [[1, 1 / 16], [2, 3 / 16]]


def test_simulated_restarts_take_what_is_spent_over_the_runs_that_arrive_on_average():
    spent, whole = np.array([30.0, NAN, 90.0, NAN, NAN]), np.array([200.0, 50.0, 200.0, 120.0, 200.0])
    made = profiles.restarted(np.tile(spent, 40_000), np.tile(whole, 40_000), np.random.default_rng(1))
    expected = (30 + 50 + 90 + 120 + 200) / 2
    assert abs(made.mean() - expected) < 5 * stats.sem(made) < 0.02 * expected
    # A run that arrives is itself, and another one its own evaluations and those of one that arrives, at least.
    assert set(made[::5]) == {30} and made[1::5].min() == 50 + 30 and 50 + 90 in made[1::5]
    # How many fail before one arrives is geometric; all of these take 1, and that which arrives takes nothing.
    each = profiles.restarted(np.tile([0.0, NAN, NAN, NAN], 20_000), np.ones(80_000), np.random.default_rng(2))[1::4]
    shares = [np.mean(each == count) for count in (1, 2, 3)]
    np.testing.assert_allclose(shares, stats.geom.pmf([1, 2, 3], 1 / 4), atol=0.02)
    assert np.isnan(profiles.restarted(np.full(2, NAN), np.ones(2), np.random.default_rng(0))).all()


def test_runtimes_with_restarts_are_a_measure_of_their_own():
    # Of b no run arrives at the second target, of a one of two: with restarts the other one does so, too.
    runs = runs_of([[1, 3], [1, NAN], [1, NAN], [1, NAN]], optimizer=["a", "a", "b", "b"], start=["s", "t"] * 2, dimension=2)
    made, again = (profiles.ecdf(runs, np.full(4, True)) for _ in range(2))
    pd.testing.assert_frame_equal(made, again)
    own = made[made["measure"] == profiles.RESTARTED]
    ends = own.groupby("optimizer")["fraction"].max()
    # Of eight targets.
    assert ends.to_dict() == {"a": 2 / 8, "b": 1 / 8}
    a = own[own["optimizer"] == "a"]
    # The first target takes 2 evaluations, the second 4, or 101 and 4, or twice 101 and 4, …: over the dimension.
    assert a["budget"].tolist()[:4] == [1, 2, 52.5, 103] and a["fraction"].tolist()[:2] == [1 / 8, 1.5 / 8]
    all_arrive = profiles.ecdf(runs_of([[1, 3], [1, 2]], start="s"), np.full(2, True))
    assert profiles.RESTARTED not in set(all_arrive["measure"])


def test_an_optimizer_that_ran_elsewhere_is_not_held_against_others():
    runs = runs_of([1, 2, 1, 1], optimizer=["a", "b", "a", "b"], start=["s", "s", "t", "u"])
    assert profiles.performance(runs, np.full(4, True)).values.tolist() == [["a", 1.0, 1.0], ["b", 1.5, 1.0]]


@pytest.mark.parametrize("n", [6, 7, 8, 30, 31, 1000])
def test_the_interval_of_a_median_is_exact_and_holds_it(n):
    values = np.random.default_rng(n).lognormal(size=n)
    never = np.where(values > np.quantile(values, 0.6), np.inf, values)
    low, high = ranking.interval(np.stack([values, never], axis=1))
    exact = stats.quantile_test(values, p=0.5).confidence_interval(0.95)
    assert (low[0], high[0]) == (exact.low, exact.high) and low[1] == low[0]
    middle = ranking.median(np.stack([values, never], axis=1))
    assert (low <= middle).all() and (middle <= high).all()
    # The median lies between two places with this probability (Conover 1999), of n tosses of a coin.
    below, above = np.searchsorted(np.sort(values), [low[0], high[0]]) + 1
    assert stats.binom.cdf(above - 1, n, 0.5) - stats.binom.cdf(below - 1, n, 0.5) >= 0.95


def test_too_few_values_have_no_interval():
    for n in range(1, 6):
        assert np.isnan(ranking.interval(np.ones((n, 1)))).all()
    assert np.isnan(ranking.interval(np.full((9, 1), np.inf))).all()


@pytest.mark.parametrize("problems", [1, 2, 5])
def test_the_interval_of_the_overall_score_is_of_the_score(problems):
    rng = np.random.default_rng(problems)
    of = [f"p{i}" for i in range(problems) for _ in range(40)]
    # The lowest target that is reached differs: of all runs of one problem 6 of 8, of all of another none.
    reached = np.where(np.arange(8) < rng.integers(0, 9, (len(of), 1)), 1.0, NAN)
    one = of.index(of[-1])
    reached[one:] = NAN
    runs = runs_of(reached, problem=of)
    (row,) = ranking.overall(runs).itertuples()
    shares = np.isfinite(reached).mean(axis=1).reshape(problems, 40)
    assert row.share == pytest.approx(shares.mean())
    assert row.low <= row.share <= row.high if problems > 1 else np.isnan(row.low)
    if problems > 1:
        # Of a mean of independent means, by the central limit theorem.
        half = 1.96 * np.sqrt((shares.std(axis=1) ** 2 / 40).sum()) / problems
        assert row.high - row.low == pytest.approx(2 * half, rel=0.15)


def test_a_configuration_that_has_not_run_everywhere_has_no_overall_score():
    runs = runs_of([1, 1, 2], optimizer=["a", "a", "b"], problem=["p", "q", "p"], start="s")
    tables = report.computed(runs)
    assert tables["overall"]["optimizer"].tolist() == ["a"]
    assert "problems" in tables["fairness"]["mark"].tolist() and set(tables["ecdf"]["optimizer"]) == {"a"}
    apart = report.computed(runs_of([1, 2], optimizer=["a", "b"], problem=["p", "q"], start="s"))
    assert apart["overall"].empty and apart["ecdf"].empty
    assert not any(line.startswith("overall") for line in answer.text(runs, apart).splitlines())


def test_medians_are_finite_where_half_of_the_runs_arrive():
    assert ranking.median(np.array([3.0, np.inf, 1.0, np.inf])) == 3 and np.isinf(ranking.median(np.array([1, np.inf, np.inf])))


def test_ranking_says_how_sure_it_is():
    n = 8
    fast, slow = np.arange(1, n + 1), np.arange(1, n + 1) + 5
    starts = [f"s{i}" for i in range(n)] * 2
    runs = runs_of([*slow, *fast], optimizer=["b"] * n + ["a"] * n, start=starts)
    made = ranking.tables(runs)["ranking"]
    assert (
        made["optimizer"].tolist() == ["a", "b"] and made["steps"].tolist() == [4, 9] and made["target"].tolist() == [0.1] * 2
    )
    # All n signs alike: p = 2 / 2^n.
    assert made["words"].tolist() == ["best", f"more steps than a at 8 of 8 starts (p = {2 / 2**n:.2g})"]
    same = ranking.tables(runs_of([*fast, *fast], optimizer=["b"] * n + ["a"] * n, start=starts))["ranking"]
    assert same["words"][1] == "not told apart from b at 8 starts (p = 1)"
    few = ranking.tables(runs_of([1, 2, 3, 4], optimizer=["a", "a", "b", "b"], start=["s", "t"] * 2))["ranking"]
    assert few["words"][1] == "more steps than a at 2 of 2 starts: too few to tell"
    alike = ranking.tables(runs_of([1, 2, 1, 2, 3], optimizer=["a", "a", "b", "b", "c"], start=["s", "t", "s", "t", "u"]))
    words = alike["ranking"].set_index("optimizer")["words"]
    assert words["b"] == "as many steps as a at 2 starts: too few to tell" and words["c"] == "no start in common with a"


def test_many_comparisons_are_held_to_account():
    # Each of 20 methods needs more steps at 6 of 6 starts: p = 2 / 2^6 = 0.031 alone, and of all 20 together as much.
    names = [f"m{i:02}" for i in range(21)]
    steps = [1 + (name != "m00") for name in names for _ in range(6)]
    starts = [f"s{i}" for _ in names for i in range(6)]
    made = ranking.tables(runs_of(steps, optimizer=np.repeat(names, 6).tolist(), start=starts))["ranking"]
    assert made["words"][1] == "more steps than m00 at 6 of 6 starts (p of 20 comparisons = 0.031)"
    # Where one of them alone does, it is as likely by chance: 20 · 0.031 > 0.05.
    steps = [1 + (name == "m20") * i for name in names for i in range(1, 7)]
    made = ranking.tables(runs_of(steps, optimizer=np.repeat(names, 6).tolist(), start=starts))["ranking"]
    assert made["words"].iloc[-1].startswith("not told apart from m00 at 6 starts (p of 20 comparisons = ")
    assert float(made["words"].iloc[-1].split()[-1][:-1]) == pytest.approx(20 * 2 / 2**6, rel=0.01)


def test_expected_steps_are_all_steps_over_the_runs_that_arrive():
    runs = runs_of([10, 20, NAN])
    assert ranking.tables(runs)["ranking"]["ert"].tolist() == [(10 + 20 + 100) / 2]
    none = ranking.tables(runs_of([NAN, NAN]))
    assert none["ranking"]["words"].tolist() == ["reaches no target"] and none["targets"].empty


def test_rates_that_converge_the_edge_and_the_next_grid():
    rates = [0.01, 0.1, 1.0, 10.0]
    runs = runs_of([NAN, 5, 3, NAN], rate=rates, last_loss=[0.5, 0.01, 0.01, 7.0], start="s", limit=2.0)
    row = stability.table(runs).iloc[0]
    assert (row.low, row.high, row.decades, row.best, row.edge, row.limit, row.at_edge) == (0.1, 1, 1, 1, 10, 2, "")
    cut = runs_of([NAN, 5, 3], rate=rates[:3], last_loss=[0.5, 0.01, 0.01], start="s")
    row = stability.table(cut).iloc[0]
    assert row.at_edge == "high" and row.next.endswith("optimizer=sgd optimizer.learning_rate=10,100,1000")
    marks = fairness.table(cut, stability.table(cut))
    assert marks["mark"].tolist() == ["edge"] and "is the highest tried; go on with: python -m runner -m" in marks["words"][0]


@pytest.mark.parametrize(("low", "high"), [(15, 192), (53, 55), (60, 60), (0, 5000), (0, 3), (2, 20_000)])
def test_an_axis_of_steps_has_numbers(low, high):
    made = style.figure(4, 2)
    place = made.subplots()
    place.plot([low, high], [0, 1], "o")
    figures.counted(place, low, high)
    made.canvas.draw()
    ends = place.get_xlim()
    seen = [each.get_text() for each in place.get_xticklabels() if ends[0] <= each.get_position()[0] <= ends[1]]
    assert len(list(filter(None, seen))) >= 2, seen


def test_the_picture_of_a_ranking_is_drawn_where_somebody_arrives(tmp_path):
    runs = runs_of([0, 3, 40, NAN, NAN, NAN, NAN], optimizer=["a", "a", "b", "b", "b", "c", "c"], start=list("ststust"))
    assert figures.ranking(tmp_path / "ranking.png", ranking.tables(runs)["ranking"])
    assert (tmp_path / "ranking.png").read_bytes()[:4] == b"\x89PNG"
    nobody = ranking.tables(runs_of([NAN, NAN]))["ranking"]
    assert not figures.ranking(tmp_path / "none.png", nobody) and not (tmp_path / "none.png").exists()


def test_what_is_unfair_is_marked():
    both = {"optimizer": ["a", "b"], "start": ["s", "t"]}
    clip = {"p.optimizer.clipnorm": ["None", "1.0"], "max_iterations": [100, 200], "ending": ["time_limit", "converged"]}
    runs = runs_of([1, 2], **both, **clip, evaluations=[101, 303])
    marks = fairness.table(runs, stability.table(runs))
    assert marks["mark"].tolist() == ["budget", "budget", "budget", "clipping", "starts"]
    assert marks["words"][0] == "max_iterations is 100, 200" and "b evaluates 3 times a step" in marks["words"][1]
    assert marks["words"][3] == "optimizer.clipnorm is set for b, and not for all runs"
    tuned = runs_of([1, 2, 3], optimizer=["a", "a", "b"], rate=[1, 2, 1], start="s")
    assert "unequally many configurations: a 2, b 1" in fairness.table(tuned, stability.table(tuned))["words"].tolist()
    fair = runs_of([1, 2], optimizer=["a", "b"], start="s")
    assert fairness.table(fair, stability.table(fair)).empty


@pytest.mark.parametrize(
    "loss, largest",
    [
        ("quadratic", 2.0),
        # Hessians [[10, 8], [8, 10]] and [[0.52, -0.48], [-0.48, 0.52]], and diag(2, …, 2c).
        ("booth", 18.0),
        ("matyas", 1.0),
        ("ellipsoid", 200.0),
        ("rosenbrock", None),
    ],
)
def test_the_largest_curvature_of_quadratics(loss, largest):
    from conftest import CONF
    from omegaconf import OmegaConf

    nodes = {"loss": OmegaConf.to_container(OmegaConf.load(CONF / f"loss/{loss}.yaml"))}
    nodes["instance"] = OmegaConf.to_container(OmegaConf.load(CONF / "instance/none.yaml"))
    (fact,) = facts.of({"key": OmegaConf.to_yaml({**nodes, "seed": 0})}).values()
    assert fact.minimum == 0 and (fact.curvature is None if largest is None else fact.curvature == pytest.approx(largest))
    read = facts.Fact.read(fact.fields)
    assert read.curvature == fact.curvature and np.array_equal(read.minimisers, fact.minimisers)


def test_nothing_of_a_strangers_is_run():
    assert facts.of({"key": "loss: {_target_: os.abort}\ninstance: {_target_: runner.losses.instances.none}\nseed: 0\n"}) == {}


def test_words_are_no_formulas_in_a_spreadsheet():
    table = pd.DataFrame({"name": ["=1+1", "+a", "@b", "adam", "-c"], "number": [-1.5, 2, 3, 4, 5]})
    made = report.safe(table)
    assert made["name"].tolist() == ["'=1+1", "'+a", "'@b", "adam", "'-c"] and made["number"][0] == -1.5


@pytest.fixture
def command(cli, monkeypatch, capfd):
    """Run `python -m runner.report` in the folder of `cli`."""

    def run(*words: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["runner.report", *words])
        try:
            code = report.main()
        except SystemExit as exit:
            code = exit.code
        return Ended(code, *capfd.readouterr())

    return run


RATES = (0.05, 0.5, 0.9, 1.1)
# SGD on (x - 4)², in fused jobs: x - 4 shrinks by 1 - 2 rate a step.
QUADRATIC = ["-m", "hydra/launcher=fused", "optimizer.learning_rate=0.05,0.5,0.9,1.1", "guess=uniform", "seed=0,1,2,3"]
QUADRATIC += ["dtype=float64", "max_iterations=150"]


def parent(folder: Path):
    client = store(folder)
    found = client.search_runs([each.experiment_id for each in client.search_experiments()], "tags.sweep = 'parent'")
    return client, found[0]


def files(client, run_id: str) -> set[str]:
    tops = client.list_artifacts(run_id)
    return {each.path for each in tops} | {each.path for each in client.list_artifacts(run_id, "tables")}


def test_a_sweep_is_reported_when_it_ends(reported, command, tmp_path):
    ended = reported(*QUADRATIC)
    assert ended.code == 0 and ended.err == ""
    client, run = parent(tmp_path)
    out = tmp_path / f"outputs/reports/{run.info.run_id}"
    assert f"report: outputs/reports/{run.info.run_id}/report.html" in ended.out
    logged = files(client, run.info.run_id)
    assert {
        "report.html",
        "ranking.png",
        "stability.png",
        "jobs.json",
        "tables/ranking.csv",
        "tables/ranking.parquet",
    } <= logged
    runs = pd.read_parquet(out / "tables/runs.parquet")
    assert len(runs) == 16
    # The gap is (1 - 2 rate)^(2 k) of the first; a step of 0.5 gets there at once, and 1.1 never.
    for row in runs[runs["learning_rate"] != 1.1].itertuples():
        first, shrinks = (row.x0 - 4) ** 2, max((1 - 2 * row.learning_rate) ** 2, 1e-300)
        steps = np.ceil(np.log(reading.TARGETS / first) / np.log(shrinks)).clip(0)
        np.testing.assert_array_equal(row[-8:], np.where(steps <= 150, steps, NAN))
    row = pd.read_parquet(out / "tables/stability.parquet").iloc[0]
    assert (row["low"], row["high"], row["best"], row["edge"], row["limit"], row["at_edge"]) == (0.05, 0.9, 0.5, 1.1, 1, "")
    (row,) = pd.read_csv(out / "tables/ranking.csv").to_dict("records")
    assert row["configuration"] == "optimizer=sgd optimizer.learning_rate=0.5" and row["steps"] == 1 and row["target"] == 1e-8

    again = command(run.info.run_id[:10], "--out", "elsewhere")
    assert again.code == 0 and again.err == "" and (tmp_path / "elsewhere/report.html").is_file()
    # Of four runs there is no interval of 95 %.
    assert "reaches 1e-08 in 1 step, 100% of 4 runs; at rates 0.05 … 0.9 at least half of the runs end at 0.1" in again.out
    assert "of their first gap, or lower, 2/L = 1" in again.out
    ended = command("--filter", "params.`optimizer.learning_rate` = '0.9'", "--by", "seed")
    assert ended.code == 0 and ": 4 runs, 1 problem, 4 groups" in ended.out
    for words, told in (
        (("--filter", "params.seed = '9'"), "runs with params.seed = '9' has no runs to report with params.seed = '9'"),
        (("--filter", "nonsense"), "--filter 'nonsense' is no condition of MLflow's:"),
        (("--by", "momentum"), "--by must name what differs among the runs, got 'momentum'; "),
        (("runs[0]",), "a run is named by its id, or the beginning of it, got 'runs[0]'"),
    ):
        ended = command(*words)
        assert ended.code == 2 and ended.err.startswith(f"error: {told}") and ended.err.count("\n") == 1, ended.err


def test_a_sweep_that_reuses_runs_or_has_not_ended_is_reported(reported, command, tmp_path):
    assert "report:" not in reported(*QUADRATIC, "report=none").out
    client, run = parent(tmp_path)
    assert files(client, run.info.run_id) == {"jobs.json"}
    again = reported(*QUADRATIC)
    assert "16 reused" in again.out and ": 16 runs, 1 problem, 1 method" in again.out
    # As a sweep that runs yet: half of its jobs are there, and one of these has no rows.
    experiment = run.info.experiment_id
    half = client.create_run(experiment, tags={"sweep": "parent", "overrides": "x"}).info.run_id
    ids, found = selection.children(client, run)
    assert len(ids) == 16 and found == {}
    for each in ids[:8]:
        client.set_tag(each, selection.PARENT, half)
    client.create_run(experiment, tags={selection.PARENT: half, "loss": "quadratic", "optimizer": "sgd"})
    ended = command(half)
    assert ended.code == 0 and ": 8 runs," in ended.out and "1 run without rows: failed, or running yet" in ended.out
    assert "report.html" in files(client, half)
    # The two ways to read a store.
    by_sql = selection.records(client, selection.Selection(ids, "", None, ""))
    assert by_sql == [selection.plain(client.get_run(each)) for each in ids]


def test_a_report_that_goes_wrong_is_told_in_one_line_and_the_sweep_is_none_the_worse(reported, tmp_path):
    (tmp_path / "outputs/reports").write_text("no folder")
    ended = reported(*QUADRATIC[:2], "optimizer.learning_rate=0.1,0.2")
    assert ended.code == 0 and ended.err == ""
    _, run = parent(tmp_path)
    told = f"; again: python -m runner.report {run.info.run_id}"
    assert run.info.status == "FINISHED" and ended.out.splitlines()[-1].endswith(told)
    assert ended.out.splitlines()[-1].startswith("the report cannot be made: ")


def test_ctrl_c_ends_the_command_without_a_word(capsys):
    def interrupted(words):
        raise KeyboardInterrupt

    assert records.answered(interrupted) == 130 and capsys.readouterr() == ("", "")


def test_a_store_without_sweeps_is_told_of_in_one_line(command):
    ended = command()
    assert ended.code == 2 and ended.err.startswith("error: there is no sweep in sqlite:///") and ended.err.count("\n") == 1
    ended = command("--tracking-uri", "sqlite:///none.db")
    assert ended.code == 2 and ended.err == (
        "error: there is no store sqlite:///none.db; name it with --tracking-uri or MLFLOW_TRACKING_URI\n"
    )


def test_problems_and_configurations_are_named_by_what_differs():
    common = {"tracking.every": "1", "seed": "0"}
    several = [
        {**common, "loss.dimension": "2", "optimizer.learning_rate": "0.1", "optimizer.beta": "1", "seed": "1"},
        {**common, "loss.dimension": "5", "optimizer.learning_rate": "0.1", "optimizer.beta": "2", "tracking.every": "9"},
    ]
    tags = {"loss": "sphere", "optimizer": "adam", "ending": "converged"}
    found = [selection.Record(str(i), "FINISHED", "", params, tags, {}) for i, params in enumerate(several)]
    frame = describing.described(found)
    assert frame["problem"].tolist() == ["sphere loss.dimension=2", "sphere loss.dimension=5"]
    rate = "optimizer=adam optimizer.learning_rate=0.1 optimizer.beta="
    assert frame["configuration"].tolist() == [f"{rate}1", f"{rate}2"]
    assert sorted(name for name in frame if name.startswith("p.")) == ["p.loss.dimension", "p.optimizer.beta", "p.seed"]


def test_the_answer_is_short():
    problems = [f"p{i}" for i in range(9) for _ in range(2)]
    runs = runs_of([1, 2] * 9, optimizer=["a", "b"] * 9, problem=problems, start="s")
    lines = answer.text(runs, report.computed(runs)).splitlines()
    assert len(lines) <= 16 and lines[0] == "sweep x: 18 runs, 9 problems, 2 methods"
    assert lines[1].startswith("overall: optimizer=a rate=0.1 reaches 12% of the targets, the mean over all problems")
    assert "and 3 more problems: in the tables" in lines
