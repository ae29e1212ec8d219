"""A run's pictures: what they show, that they are there when they should, and the page in headless Chromium."""

from __future__ import annotations

import re
from pathlib import Path

import browser
import numpy as np
import pytest
import tensorflow as tf
from conftest import store
from scipy.optimize import rosen

from runner import loop, losses
from runner.losses import Loss
from runner.pictures import html, landscape, thinning
from runner.pictures import report as pictures
from runner.trace import Trace
from runner.tracking import replay

PICTURES = {"report.png", "report.html"}


def files(folder: Path, run) -> set[str]:
    """Return which pictures a run has."""
    return {each.path for each in store(folder).list_artifacts(run.info.run_id)} & PICTURES


def trace(x: np.ndarray, loss: np.ndarray, start: int = 0) -> Trace:
    return Trace(start, x, loss, np.ones_like(x))


def drawing(loss: Loss, x: np.ndarray, title: str = "a title") -> thinning.Drawing:
    """Return what is drawn of a path."""
    made = thinning.Report(title, 1000)
    values = np.array([float(loss(tf.constant(each))) for each in x], x.dtype)
    made.watch(trace(x, values))
    row = trace(x[-1:], values[-1:], len(x) - 1)
    ended = loop.Result(loop.Ending.ITERATION_LIMIT, None, row, row, {}, pace=((0, 0.0), (len(x), 0.5)))
    return made.drawing(ended, loss)


@pytest.mark.parametrize("name", ["branin", "himmelblau", "rosenbrock", "six_hump_camel", "booth"])
def test_the_known_minimum_is_in_the_picture_and_the_loss_on_the_grid_is_least_there(name, monkeypatch):
    loss = Loss.of(getattr(losses, name), 2)
    x = np.linspace(loss.start, loss.start + 0.3, 20)
    monkeypatch.setattr(landscape, "BUDGET", 60)  # on a busy machine too
    made = drawing(loss, x)
    (across, up), values = (made["across"], made["up"]), made["values"]
    assert len(made["minimisers"]) >= 1
    for at in made["minimisers"]:
        assert across[0] < at[0] < across[-1] and up[0] < at[1] < up[-1]
        assert any(np.allclose(at, known) for known in loss.minimisers)
    assert values.min() >= loss.minimum - 1e-9
    assert across[0] < x[:, 0].min() and x[:, 1].max() < up[-1]
    if name == "rosenbrock":
        np.testing.assert_allclose(values, rosen(np.stack(np.meshgrid(across, up))))


def test_the_path_of_a_scalar_is_on_its_curve():
    x = np.float32(4 - 4 * 0.8 ** np.arange(30))
    made = drawing(Loss.of(losses.quadratic), x)
    np.testing.assert_allclose(made["values"], (made["across"] - 4) ** 2, atol=1e-5)
    np.testing.assert_allclose(made.points, [x, (x - 4) ** 2], rtol=1e-6)
    assert made["across"][0] < 0 and made["across"][-1] > 4 and made["minimisers"] == [4]
    # Evenly over the half second that the loop took.
    np.testing.assert_allclose(made["seconds"], made["step"] / 60)


def test_the_principal_plane_of_a_path_within_a_plane_holds_all_of_it():
    rng = np.random.default_rng(0)
    plane = np.linalg.qr(rng.normal(size=(5, 2)))[0].T
    x = 7 + (rng.normal(size=(40, 2)) * [3, 1]) @ plane
    made = landscape.landscape(Loss.of(losses.sphere, 5), x)
    # Distances within it are those of the path, and the loss at its last point is the loss at the grid's origin.
    distances = lambda points: np.linalg.norm(points[:, None] - points[None], axis=-1)  # noqa: E731
    np.testing.assert_allclose(distances(made.path), distances(x), atol=1e-9)
    np.testing.assert_allclose(made.path[-1], 0, atol=1e-12)
    at = [np.interp(0, made.grid[name], np.arange(len(made.grid[name]))) for name in ("up", "across")]
    assert np.isclose(made.grid["values"][round(at[0]), round(at[1])], np.sum(x[-1] ** 2), rtol=0.05)
    assert "100.0%" not in made.labels[0] and len(made.minimisers) == 1


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda x: tf.reduce_sum(x**2), "does not broadcast"),
        # It takes one point as well, and gives a loss for it.
        (lambda x: tf.reduce_sum(x**2, keepdims=True)[0], "does not broadcast"),
        # There is no second point yet.
        (lambda x: x[0] ** 2 + x[1], "cannot be had at many points at once"),
        (lambda x: tf.ensure_shape(x, (2,))[0], "cannot be had at many points at once"),
        (lambda x, *, seed: x[..., 0], "another in each step"),
        (lambda x: x[..., 0] * np.nan, "nowhere finite"),
    ],
)
def test_a_loss_that_cannot_be_drawn_leaves_the_path_and_a_note(function, told):
    made = landscape.landscape(Loss.of(function, 2), np.arange(10.0).reshape(5, 2))
    assert told in made.note and made.grid == {} and made.path.shape == (5, 2)


def test_a_long_run_is_thinned_to_its_ends_and_extremes():
    rng = np.random.default_rng(0)
    loss = rng.normal(size=100_000)
    loss[[31_234, 77_777]] = -50, 50
    loss[5] = np.nan
    made = thinning.Report("", 100)
    for start in range(0, len(loss), 7_000):
        part = loss[start : start + 7_000]
        made.watch(trace(part, part, start))
    step = made.kept["step"]
    assert len(step) <= 300 and (np.diff(step) > 0).all()
    assert {0, 31_234, 77_777, 99_999} <= set(step.tolist())
    np.testing.assert_array_equal(made.kept["x"], loss[step])
    # No stretch is left out.
    assert np.diff(step).max() <= 2 * made.every


@pytest.mark.parametrize("start", [0, 3, 1000])
@pytest.mark.parametrize("every", [2, 64, 4096])
@pytest.mark.parametrize("count", [3, 100, 1037])
def test_consecutive_rows_are_thinned_as_others_are(start, every, count):
    loss = np.random.default_rng(0).normal(size=count).round(1)
    thinned = thinning.thinned({"step": start + np.arange(count), "loss": loss}, every)
    np.testing.assert_array_equal(start + thinning.picked(start, loss, every), thinned["step"])


def test_a_run_that_goes_nowhere_or_to_infinity_is_drawn(tmp_path):
    for x in (np.zeros((1, 2)), np.ones((5, 2)), np.array([[0, 0], [1e200, 0], [np.inf, 1]])):
        assert [path.name for path in pictures.draw(tmp_path, drawing(Loss.of(losses.sphere, 2), x))]
    for x in (np.zeros(1), np.array([0, 1e200, np.nan])):
        assert {path.name for path in pictures.draw(tmp_path, drawing(Loss.of(losses.quadratic), x))} == PICTURES


def test_a_run_has_pictures_unless_it_is_told_or_is_of_a_sweep(drawn, runs, tmp_path):
    assert drawn("max_iterations=3").code == 0
    assert files(tmp_path, runs()[0]) == PICTURES
    assert drawn("max_iterations=4", "report=none").code == 0
    assert files(tmp_path, runs()[1]) == set()
    for launcher in ("basic", "fused"):
        words = ("-m", f"hydra/launcher={launcher}", "sweep.reuse=false", "max_iterations=5,6")
        assert drawn(*words).code == 0
        assert [files(tmp_path, run) for run in runs()[-2:]] == [set(), set()]
        assert drawn(*words, "report.sweep=true").code == 0
        assert [files(tmp_path, run) for run in runs()[-2:]] == [PICTURES, PICTURES]
    # Pictures are no part of what a result depends on.
    assert runs()[0].data.tags["identity"] != runs()[1].data.tags["identity"]
    assert runs()[2].data.tags["identity"] == runs()[-2].data.tags["identity"]


def test_a_picture_that_cannot_be_drawn_takes_no_run_along(drawn, runs, monkeypatch):
    def broken(folder, drawing):
        raise RuntimeError("no ink")

    monkeypatch.setattr(replay.pictures, "draw", broken)
    # In this process.
    ended = drawn("max_iterations=3", "tracking._target_=direct.mlflow", "--allow-target=direct")
    where = rf"\({re.escape(__file__)}, line {broken.__code__.co_firstlineno + 1}, in broken\)"
    told = rf"WARNING: the report cannot be drawn: RuntimeError: no ink {where}\n"
    assert ended.code == 0 and re.fullmatch(told, ended.err), ended
    assert runs()[0].info.status == "FINISHED"


def test_the_page_needs_nothing_else_and_its_controls_work(tmp_path):
    loss = Loss.of(losses.rosenbrock, 2)
    file = tmp_path / "report.html"
    # Names are the user's, and are no HTML, nor Bokeh's own templates.
    file.write_text(html.report(drawing(loss, np.linspace([-1.2, 1], [1, 1], 50), "<b>{{ 1 }} & {% me")))
    assert file.stat().st_size < 2_000_000
    shown = "Bokeh.documents[0].roots()[0].children.length && [...Bokeh.documents[0]._all_models.values()]"
    with browser.alone(file) as tab:
        tab.locator("canvas").nth(4).wait_for()
        assert "<b>{{ 1 }} & {% me" in tab.inner_text("body") and "iteration_limit at step 49" in tab.inner_text("body")
        assert tab.locator(".bk-Figure").count() == 5
        glyphs = f"{shown}.filter(each => each.type == 'GlyphRenderer').filter(each => !each.visible).length"
        before = tab.evaluate(glyphs)
        tab.get_by_text("known minimum").first.click()
        assert tab.evaluate(glyphs) == before + 1
        # Dragged, both curves against the step move, and the reset puts them back.
        ranges = f"{shown}.filter(each => each.type == 'DataRange1d').map(each => each.start)"
        was = tab.evaluate(ranges)
        box = tab.locator(".bk-Figure").first.bounding_box()
        tab.mouse.move(box["x"] + 200, box["y"] + 100)
        tab.mouse.down()
        tab.mouse.move(box["x"] + 120, box["y"] + 100, steps=5)
        tab.mouse.up()
        assert tab.evaluate(ranges) != was
