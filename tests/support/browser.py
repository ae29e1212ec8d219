"""Headless Chromium on a real MLflow server, for the tests of the UI and for README.md's pictures.

`python tests/browser.py` takes that of a run, `python tests/browser.py REPORT.html NAME` those of a sweep's report.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import servers
from commands import Command, Ended
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parents[2]
CHART = ".js-plotly-plot .scatterlayer path.js-line"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def page(width: int = 1600, height: int = 1000) -> Iterator[Page]:
    """Open a browser with an empty profile."""
    chromium = shutil.which("chromium")
    assert chromium, "the tests need Chromium: apt-get install chromium"
    with tempfile.TemporaryDirectory() as profile, sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=chromium, args=ARGUMENTS, viewport={"width": width, "height": height}
        )
        try:
            yield context.new_page()
        finally:
            context.close()


@contextmanager
def alone(file: Path) -> Iterator[Page]:
    """Open a file without a network; it has to ask for nothing else, and to complain of nothing, until this block ends."""
    with page() as tab:
        asked, errors = [], []
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
        tab.context.set_offline(True)
        tab.goto(file.as_uri())
        yield tab
        assert errors == [] and asked == [file.as_uri()]


def run(folder: Path, *words: str) -> str:
    """Run the command line in a folder and return the link that it prints, without the server's address."""
    return printed(folder, *words).splitlines()[-1].partition("http://127.0.0.1:5000")[2]


def printed(folder: Path, *words: str) -> str:
    """Run the command line in a folder and return what it prints."""
    command = Command(folder, *words)
    assert command.ended() == Ended(0, "")
    return command.out.read_text()


def picture() -> None:
    """Take the picture of README.md: the charts of one run."""
    with tempfile.TemporaryDirectory() as folder:
        link = run(Path(folder), "strategy=tape")
        with servers.mlflow(f"sqlite:///{folder}/outputs/mlflow.db", Path(folder)) as address, page(1400, 640) as tab:
            tab.goto(address + link)
            tab.locator(CHART).first.wait_for()
            # The page opens a panel at its first visit.
            tab.evaluate("localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false')")
            tab.reload()
            tab.locator(CHART).nth(2).wait_for()
            tab.wait_for_timeout(1000)
            (ROOT / "outputs" / "gallery").mkdir(exist_ok=True)
            tab.screenshot(path=ROOT / "outputs" / "gallery" / "mlflow.png")


def gallery(report: Path, name: str) -> None:
    """Take the pictures of a sweep's report: of each part that has plots."""
    with page(1240, 1000) as tab:
        tab.goto(report.resolve().as_uri())
        tab.locator(".bk-Figure canvas").first.wait_for(state="attached")
        tab.wait_for_timeout(2000)
        for section in tab.locator("section:has(h2)").all():
            if section.locator(".bk-Figure").count():
                part = section.locator("h2").inner_text().lower().replace(" ", "_")
                section.screenshot(path=ROOT / "outputs" / "gallery" / f"{name}_{part}.png")


if __name__ == "__main__":
    gallery(Path(sys.argv[1]), sys.argv[2]) if sys.argv[1:] else picture()
