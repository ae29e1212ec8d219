"""Send ended runs to the tracking store that could not be sent before; without a folder, all that are pending."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from runner.security import secrets, streams
from runner.system import folders, started
from runner.tracking import contract, delivery, journal, store
from runner.tracking.store import parent_runs

TIMEOUT = 20.0


def main(words: list[str] | None = None) -> int:
    """Send runs, and return the exit code: 1 if something is left. Files that are written are for the user alone."""
    with folders.unshared():
        return sent(parser().parse_args(words))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    made = argparse.ArgumentParser(prog="python -m runner.sync", description=__doc__)
    made.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="a run's folder; default: all that are pending")
    made.add_argument("--pending", type=Path, default=contract.PENDING, help="where those are listed (tracking.pending)")
    trusted = "a store that gets your password, or is made outside outputs, where a spool names it; MLFLOW_TRACKING_URI is one"
    made.add_argument("--tracking-uri", metavar="URI", help=trusted)
    made.add_argument("--timeout", type=float, default=TIMEOUT, help="seconds that a store has to take something")
    return made


def sent(given: argparse.Namespace) -> int:
    """Send the given folders, or all that are pending, and return the exit code."""
    store.quieten()
    code, stores = 0, [*filter(None, [given.tracking_uri])]
    folders = [started.absolute(folder) for folder in given.folders] or list(delivery.pointed(given.pending))
    for folder in folders:
        try:
            sent = delivery.one(folder, given.pending, given.timeout, complain, stores, watch=True)
        except journal.Held:
            secrets.tell(f"{folder}: its run is still going on")
            continue
        if sent.left is None:
            secrets.tell(f"{folder}: sent as run {sent.run_id}")
        else:
            complain(f"{folder}: {sent.left}")
            code = 1
    ended = [] if given.folders else list(parent_runs.end_pending(given.pending, given.timeout, stores))
    for run_id, left in ended:
        if left is None:
            secrets.tell(f"the sweep's run {run_id} has been ended")
        else:
            complain(f"the sweep's run {run_id}: {left}")
            code = 1
    if not folders and not ended:
        secrets.tell("nothing is pending")
    return code


def complain(text: str) -> None:
    """Print an error line to standard error."""
    secrets.tell(f"error: {text}", sys.stderr)


if __name__ == "__main__":
    streams.command(main)
