"""A run's report: `report.png`, and the page `report.html`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

from runner.pictures import html, png
from runner.pictures.data import Drawing
from runner.pictures.style import figure

FILES = ("report.png", "report.html")


def get_ready(wanted: Callable[[], bool]) -> None:
    """Import the plotting libraries, and draw a small figure to warm them up; stop early if `wanted` returns True."""
    if not any(wanted() for _ in imported()):
        figure(1, 1).subplots().figure.savefig(BytesIO())


def imported() -> Iterator[None]:
    """Import the slow modules one after another, and yield between them."""
    yield
    import matplotlib.figure  # noqa: F401

    yield
    import bokeh.plotting

    yield
    import bokeh.embed

    yield
    import bokeh.resources  # noqa: F401

    yield


def draw(folder: Path, drawing: Drawing) -> Iterator[Path]:
    """Draw a run's report as a picture, then as a page, and yield their files."""
    folder.mkdir(parents=True, exist_ok=True)
    picture, page = (folder / name for name in FILES)
    for each in (picture, page):
        # Unlinked first: a file that was logged before may be a hard link, whose other end must stay whole.
        each.unlink(missing_ok=True)
    png.draw(picture, drawing)
    yield picture
    page.write_text(html.report(drawing), encoding="utf-8")
    yield page
