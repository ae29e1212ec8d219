"""The page of a sweep's report: its curves, rates and maps against formulas, and its plots and widgets in headless Chromium."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import browser
import numpy as np
import pandas as pd
import pytest

from runner.report.page import curves, html, maps, page, profile_plots, rates, widgets
from runner.report.tables.reading import Runs

STEPS = 1000
GRID = np.unique(np.concatenate([[0], np.geomspace(1, STEPS, 60).astype(int)]))
TARGETS = 10.0 ** -np.arange(1.0, 9.0)
# Which a page must show, and not run.
SCRIPT = "<script>document.title='run'</script>{{ 7 * 7 }}"
RATES = np.geomspace(1e-3, 10, 5)


def made(optimizers=("adam", SCRIPT), side=10, learning_rates=RATES, problems=("sphere", "booth"), **columns: Any) -> Runs:
    """Return runs of gradient descent on λ x²/2 from a grid of starts, whose gap at step k is gap₀ (1 - rate λ)^2k."""
    rows, gaps = [], []
    places = np.linspace(-5, 5, side)
    for problem, (o, optimizer), rate in itertools.product(problems, enumerate(optimizers), learning_rates):
        curvature = 0.2 * (o + 1)
        factor = abs(1 - rate * curvature)
        for x0, x1 in itertools.product(places, places):
            gaps.append((x0**2 + x1**2) * curvature / 2 * min(factor, 1.0) ** (2.0 * GRID))
            rows.append(
                {
                    "problem": problem,
                    "loss": problem,
                    "optimizer": optimizer,
                    "learning_rate": rate,
                    "seed": 0,
                    "dimension": 2,
                    "start": f"{x0},{x1}",
                    "x0": x0,
                    "x1": x1,
                    "ending": "diverged" if factor > 1 else "iteration_limit",
                    "minimiser": -1 if factor > 1 else 2 * int(x0 > 0) + int(x1 > 0),
                    "configuration": f"optimizer={optimizer} optimizer.learning_rate={rate}",
                    "p.optimizer": optimizer,
                    "p.optimizer.learning_rate": rate,
                    "p.loss": problem,
                }
            )
    frame = pd.DataFrame(rows, index=pd.Index([f"run{i}" for i in range(len(rows))], name="run_id")).assign(**columns)
    return runs(frame, np.array(gaps, np.float32))


def runs(frame: pd.DataFrame, gap: np.ndarray) -> Runs:
    """Return runs of two evaluations and 1e-4 seconds a step."""
    frame = frame.assign(minimum=0.0, every=1, fused=False, draw=0)
    reached = gap[:, :, None] <= TARGETS
    steps = np.where(reached.any(axis=1), GRID[reached.argmax(axis=1)], np.nan)
    spent = {"evaluations": np.tile(2.0 * GRID, (len(frame), 1)), "seconds": np.tile(1e-4 * GRID, (len(frame), 1))}
    to_target = {"steps": steps, "evaluations": 2 * steps, "seconds": 1e-4 * steps}
    return Runs(frame, TARGETS, to_target, GRID, gap, spent, "sweep <b>")


def tables(of: Runs) -> dict[str, pd.DataFrame]:
    """Return tables as the report has them, of any numbers."""
    pairs = of.frame[["problem", "optimizer", "configuration"]].drop_duplicates(["problem", "optimizer"]).reset_index(drop=True)
    ranking = pairs.assign(runs=9, success_rate=0.5, steps=np.arange(len(pairs))[::-1] + 9.0, low=np.nan, high=20.0, words="=")
    budget = np.geomspace(1, 1000, 20)
    ecdf = pd.concat(
        pd.DataFrame({"optimizer": optimizer, "measure": measure, "budget": budget, "fraction": np.log10(budget) / 3})
        for optimizer in pairs["optimizer"].unique()
        for measure in ("steps", "evaluations")
    )
    one = ecdf[ecdf["measure"] == "steps"].drop(columns="measure")
    return {
        "ranking": ranking,
        "targets": pd.concat([ranking.assign(measure="steps", target=0.1, median=3.0)] * 100),
        "ecdf": ecdf,
        "performance": one.rename(columns={"budget": "tau"}),
        "data": one.rename(columns={"budget": "alpha"}),
        "stability": pairs.assign(low=1e-3, high=1.0, decades=3.0, best=0.1, edge=10.0, limit=5.0, at_edge="", next=""),
        "fairness": pd.DataFrame({"mark": ["budget"], "what": [SCRIPT], "runs": [3], "words": ["adam ran longer"]}),
    }


@pytest.fixture(scope="module")
def thousand() -> Runs:
    """Give 2 problems × 2 optimizers × 5 rates × 64 starts: 1,280 runs."""
    return made(side=8)


def test_bands_are_quartiles_of_each_group() -> None:
    # Of nine runs c 2^-k with c = 1 … 9 the quartiles, as values among them, are the 3rd, 5th and 7th.
    gap = np.arange(1.0, 10)[:, None] * 2.0 ** -np.arange(5)
    found = curves.bands(np.concatenate([gap, 10 * gap]), np.repeat(["b", "a"], 9))
    assert list(found) == ["a", "b"]
    np.testing.assert_array_equal(found["b"], np.array([[3], [5], [7]]) * 2.0 ** -np.arange(5))
    np.testing.assert_array_equal(found["a"], 10 * found["b"])


def test_a_run_without_a_gap_is_beyond_the_others() -> None:
    found = curves.bands(np.array([[1.0, 1], [2, 2], [3, np.nan], [np.nan, np.nan]]), np.array([0, 0, 0, 1]))
    np.testing.assert_array_equal(found[0], [[1, 1], [2, 2], [3, np.inf]])
    assert list(found) == [0]


def test_a_budget_buys_as_many_steps_as_it_pays_for() -> None:
    grid = np.arange(101)
    gap = np.tile(1.0 / (grid + 1), (3, 1))
    spent = grid * np.array([[1.0], [4.0], [np.nan]])
    of = SimpleNamespace(grid=grid, gap=gap, spent={"evaluations": spent})
    budgets, found = curves.against(of, "evaluations")
    assert budgets[0] == pytest.approx(1) and budgets[-1] == pytest.approx(400)
    for pace, row in ((1, found[0]), (4, found[1])):
        np.testing.assert_array_equal(row, 1 / (np.minimum(np.floor(budgets * (1 + 1e-9) / pace), 100) + 1))
    assert np.isnan(found[2]).all()
    np.testing.assert_array_equal(curves.against(of, "steps")[1], gap[:, 1:])


def test_an_optimizer_at_its_best_is_the_ranking_s_or_the_quickest() -> None:
    of = made(optimizers=["sgd"], side=2, problems=["sphere"])
    # |1 - 0.2 rate| is least at the rate of 1 of 0.001, 0.01, 0.1, 1, 10, where all beyond 10 diverge.
    alone = curves.at_best(of, pd.DataFrame())
    assert set(of.frame.loc[alone.notna(), "learning_rate"]) == {1.0} and set(alone.dropna()) == {"sgd"}
    ranked = curves.at_best(of, of.frame[of.frame["learning_rate"] == 0.1])
    assert set(of.frame.loc[ranked.notna(), "learning_rate"]) == {0.1}


def test_no_two_groupings_are_the_same() -> None:
    of = made(side=2)
    frame = of.frame.assign(best="adam", **{"p.seed": 0, "p.momentum": np.arange(len(of.frame)) % 3})
    assert list(curves.choices(frame)) == ["best", "optimizer", "configuration", "learning_rate", "p.loss", "p.momentum"]


def test_of_many_groups_those_that_end_lowest_are_drawn() -> None:
    of = made(optimizers=[f"o{i:02}" for i in range(30)], side=2, learning_rates=[0.01], problems=["sphere"])
    found = curves.table(of, pd.DataFrame())
    # The more curved, the quicker.
    assert list(found["label"].unique()) == [f"o{i}" for i in range(16, 30)] and found["slot"].max() == 13


def test_rates_say_what_is_reached_and_where_runs_diverge() -> None:
    of = made(optimizers=["sgd"], side=3, problems=["sphere"], learning_rates=[0.1, 1.0, 20.0])
    found = rates.table(of).set_index(["measure", "rate"])
    ends = found.loc[rates.REACHED]
    # The starts' squared norms are 0, 4 times 25 and 4 times 50: the middle one is 25.
    assert ends.loc[0.1, "median"] == pytest.approx(curves.FLOOR)
    assert ends.loc[20.0, "median"] == pytest.approx(25 * 0.1)
    assert list(ends["diverged"]) == [0, 0, 9] and list(ends["ringed"].notna()) == [False, False, True]
    steps = found.loc["steps to 1e-02"]
    # 2.5 · 0.8^2k ≤ 0.01 from k = ln(250) / (2 ln 1.25) = 12.4 on: the next step of the grid.
    assert steps.loc[1.0, "median"] == GRID[GRID >= 12.4][0] and np.isnan(steps.loc[20.0, "median"])


def test_a_map_shows_where_each_start_ends() -> None:
    of = made(optimizers=["sgd"], side=5, problems=["sphere"], learning_rates=[1.0, 20.0])
    found = maps.plane(of)
    assert len(found) == 50 and set(found["width"]) == {2.5 * maps.OVERLAP}
    ended = found.pivot_table("reached", "x1", "x0", aggfunc="first")
    assert set(found.loc[found["rate"] == "20", "reached"]) == {maps.DIVERGED}
    assert ended.loc[5, 5] == "minimum 4" and ended.loc[-5, 5] == "minimum 3" and ended.loc[-5, -5] == "minimum 1"
    few = made(side=4)
    assert maps.plane(few).empty and maps.draw_plane(few) is None
    line = made(side=6, dimension=1, x1=np.nan)
    assert maps.plane(line).empty


def test_a_map_marks_the_minimisers_of_the_problem_that_is_shown() -> None:
    of = replace(made(side=5), minimisers={"sphere": np.zeros((1, 2)), "booth": np.array([[1.0, 3.0]])})
    drawn = maps.draw_plane(of)
    assert drawn is not None
    (problem, *_), plots = drawn
    for plot in plots:
        stars = [each for each in plot.renderers if getattr(getattr(each, "glyph", None), "marker", None) == "star"]
        assert [(each.data_source.data["x"].tolist(), each.data_source.data["y"].tolist()) for each in stars] == [
            ([0], [0]),
            ([1], [3]),
        ]
        assert [each.visible for each in stars] == [problem.value == "sphere", problem.value == "booth"]
    assert plots[0].x_range.renderers == [plots[0].renderers[0]]


def test_of_many_optimizers_those_that_reach_most_are_drawn_and_the_others_are_counted() -> None:
    names = [f"o{i:02}" for i in range(17)]
    overall = pd.DataFrame({"optimizer": names[::-1]})
    assert widgets.drawn(names, overall) == names[3:] and widgets.drawn(names[:3], overall) == names[:3]
    of = made(optimizers=names, side=2, learning_rates=[0.01, 0.1], problems=["sphere"])
    text = page(of, tables(of), "")
    assert text.count("3 methods more: drawn are the 14 that reach most targets; <code>python -m runner.report --filter") == 2
    assert "method (14 of 17)" in text and "configuration (14 of 34)" in text


def test_starts_on_no_grid_are_squares_of_a_part_of_the_picture() -> None:
    assert maps.spacing(pd.Series(np.random.default_rng(0).uniform(0, 10, 100))) == pytest.approx(0.3, rel=0.05)
    assert maps.spacing(pd.Series(np.repeat(np.linspace(0, 1, 11), 11))) == pytest.approx(0.1 * maps.OVERLAP)


def test_a_map_of_rates_numbers_starts_by_their_loss() -> None:
    of = made(optimizers=["sgd"], side=3, problems=["sphere"], learning_rates=[0.1, 1.0, 20.0])
    found = maps.rates(of)
    assert len(found) == 27 and sorted(found["start"].unique()) == list(range(1, 10))
    # The first start is the minimiser, where every rate has nothing to do.
    assert (found.loc[found["start"] == 1, "1e-02"] == 0).all()
    assert (
        found.loc[found["rate"] == 20, "diverged"].all()
        and found.loc[(found["rate"] == 20) & (found["start"] > 1), "1e-02"].isna().all()
    )
    slow = found[(found["rate"] == 0.1) & (found["start"] > 1)].sort_values("start")["1e-02"]
    assert slow.is_monotonic_increasing


def test_a_profile_goes_on_to_where_the_others_end() -> None:
    found = pd.DataFrame({"optimizer": ["a", "b", "b", "c"], "x": [1.0, 2.0, 8.0, np.nan], "fraction": [0.5, 0.25, 1.0, 0.0]})
    drawn = profile_plots.across_all(found, ["optimizer"])
    curve = {name: list(zip(own["x"], own["fraction"], strict=True)) for name, own in drawn.groupby("optimizer")}
    assert curve == {"a": [(1, 0.5), (8, 0.5)], "b": [(1, 0), (2, 0.25), (8, 1), (8, 1)], "c": [(1, 0), (8, 0)]}


def test_a_profile_that_rises_at_one_place_alone_is_seen() -> None:
    drawn = profile_plots.across_all(pd.DataFrame({"optimizer": ["a"], "x": [4.0], "fraction": [0.5]}), ["optimizer"])
    assert list(zip(drawn["x"], drawn["fraction"], strict=True)) == [(2, 0), (4, 0.5), (8, 0.5)]


def test_a_number_keeps_its_digits_for_sorting_and_text_is_no_html() -> None:
    shown = html(pd.DataFrame({"a_b": [1 / 3, np.nan], "c": ["<i>&", None], "d": [True, False], "e": [np.inf, 1.0]}))
    assert f'data-v="{1 / 3}">0.3333<' in shown and "<td>&lt;i&gt;&amp;</td>" in shown and "<th>a b</th>" in shown
    assert ">–<" in shown and 'data-v="Infinity">∞<' in shown and "<td>True</td>" in shown and "None" not in shown


def test_parts_without_anything_say_so() -> None:
    of = made(optimizers=["adam"], side=2, learning_rates=[np.nan], problems=["sphere"])
    text = page(of, {}, "nothing yet")
    for words in ("Nothing speaks against", "one learning rate, or schedules", "Too few starts lie", "nothing is ranked"):
        assert words in text
    of.gap[:] = np.nan
    assert "No run has a finite loss." in page(of, {"ranking": pd.DataFrame()}, "")


def test_a_large_sweep_is_a_small_page() -> None:
    of = made([f"optimizer{i}" for i in range(14)], 6, np.geomspace(1e-4, 1, 9), [f"problem{i}" for i in range(7)])
    assert len(of.frame) == 31_752
    assert len(page(of, tables(of), "").encode()) < 10_000_000


class Opened:
    """A page in a browser, which has heard of nothing but its own file."""

    def __init__(self, tab: Any) -> None:
        self.tab = tab

    def drawn(self, figure: int) -> Any:
        """Return the numbers and words that a plot's curves, or squares, are drawn from."""
        code = """i => Bokeh.documents.flatMap(each => [...each._all_models.values()]).filter(each => each.type == "Figure")[i]
        .renderers.filter(each => each.visible).map(each => each.data_source?.data).filter(each => each)
        .map(each => Object.entries(each).map(([name, all]) => [name, [...all]]))"""
        return self.tab.evaluate(code, figure)

    def choose(self, title: str, value: str, nth: int = 0) -> None:
        self.tab.get_by_label(title, exact=True).nth(nth).select_option(value)


@pytest.fixture(scope="module")
def opened(thousand: Runs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    file = tmp_path_factory.mktemp("page") / "page.html"
    file.write_text(page(thousand, tables(thousand), f"adam is quickest\n{SCRIPT}"))
    assert file.stat().st_size < 10_000_000
    with browser.alone(file) as tab:
        tab.locator(".bk-Figure canvas").nth(8).wait_for(state="attached")
        yield Opened(tab)


def test_the_page_shows_all_plots_and_runs_nothing_of_a_config(opened):
    heads = opened.tab.locator("h2").all_inner_texts()
    assert heads[:4] == ["Answer", "Ranking", "Convergence", "Learning rates"] and len(heads) == 9
    # Convergence, two of rates, three profiles, two maps of starts and one of rates.
    assert opened.tab.locator(".bk-Figure").count() == 9
    assert opened.tab.title() == "sweep <b>" and SCRIPT in opened.tab.locator("pre").inner_text()
    assert opened.tab.locator("section").nth(8).locator("tbody tr").count() == 200


def test_nothing_is_cut_off_where_there_is_little_room(opened):
    # As the page of a run in MLflow has it.
    opened.tab.set_viewport_size({"width": 700, "height": 800})
    opened.tab.wait_for_function(
        "Math.max(...[...document.querySelectorAll('.bk-Column')].map(each => each.offsetWidth)) < 700"
    )
    assert opened.tab.evaluate("document.documentElement.scrollWidth") <= 700
    opened.tab.set_viewport_size({"width": 1600, "height": 1000})


def test_curves_follow_what_is_chosen(opened):
    before = opened.drawn(0)
    opened.choose("Against", "evaluations")
    after = opened.drawn(0)
    assert dict(before[1])["x"][-1] == STEPS and dict(after[1])["x"][-1] == pytest.approx(2 * STEPS)
    opened.choose("One curve for each", "learning rate")
    labels = {dict(each)["label"][0] for each in opened.drawn(0) if dict(each)["label"]}
    assert labels == {"0.001", "0.01", "0.1", "1", "10"}
    opened.choose("Against", "steps")
    opened.choose("One curve for each", "method at its best")
    assert opened.drawn(0) == before


def test_bands_and_curves_are_switched_off(opened):
    models = "Bokeh.documents.flatMap(each => [...each._all_models.values()])"
    bands = f"{models}.filter(each => each.type == 'VArea' && each.fill_alpha.value > 0).length"
    # The other, invisible ones are those of areas that are not selected, or muted.
    before = opened.tab.evaluate(bands)
    opened.tab.get_by_label("bands from 25 to 75 % of the runs").uncheck()
    assert opened.tab.evaluate(bands) == before - curves.SLOTS


def test_rates_and_maps_follow_what_is_chosen(opened):
    reached = dict(opened.drawn(1)[0])
    opened.choose("Shown", "steps to 1e-02")
    assert dict(opened.drawn(1)[0])["median"] != reached["median"]
    assert not np.isnan(dict(opened.drawn(7)[0])["shown"]).any()
    # Of a curvature of 0.2 it is 2/L: the run goes from one side to the other for ever.
    opened.choose("Optimizer at a learning rate", "adam at 10")
    assert np.isnan(dict(opened.drawn(7)[0])["shown"]).all()
    before = dict(opened.drawn(8)[0])["shown"]
    opened.choose("Steps to the target", "1e-04", nth=1)
    assert dict(opened.drawn(8)[0])["shown"] != before


def test_a_table_is_sorted_by_a_click(opened):
    column = opened.tab.locator("section").nth(1).locator("tbody tr td:nth-child(6)")
    head = opened.tab.locator("section").nth(1).locator("th").nth(5)
    head.click()
    assert column.all_inner_texts() == ["9", "10", "11", "12"]
    head.click()
    assert column.all_inner_texts() == ["12", "11", "10", "9"]
