"""Which jobs of a group have yet to be recorded: a file in its folder below `tracking.pending` says so, once it is saved."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from runner.errors import first_line
from runner.system import folders as kept
from runner.system import started
from runner.tracking import journal

GROUPS, FILE = "groups", "group.json"


class Run(NamedTuple):
    """The run that a job is or will be."""

    identity: str
    key: str
    folder: str | None = None  # where its files are, once it has begun to be recorded


class Jobs(NamedTuple):
    """What the file says: the jobs' runs, the columns of their program, and how often they have been continued."""

    runs: list[Run]
    columns: tuple[str, ...] = ()
    resumed: int = 0

    def write(self, folder: Path) -> None:
        """Say so in a folder, at once or not at all."""
        new = folder / f"{FILE}.tmp"
        new.write_text(json.dumps(self._asdict()), encoding="utf-8")
        new.replace(folder / FILE)


def of(folder: Path) -> Jobs:
    """Return the jobs of a group; none where there is no file, or it is not to be read."""
    try:
        fields = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return Jobs([Run(*each) for each in fields["runs"]], tuple(fields["columns"]), fields["resumed"])
    except FileNotFoundError:
        return Jobs([])
    except (OSError, ValueError, TypeError, KeyError) as error:
        text = "checkpoint: %s cannot be read (%s); its group is not continued"
        logging.getLogger(__name__).warning(text, folder / FILE, first_line(error)[:100])
        return Jobs([])


def place(pending: Path) -> Path:
    """Return a new folder for a group."""
    return started.absolute(pending) / GROUPS / uuid.uuid4().hex


def make(folder: Path) -> None:
    """Make a group's folder."""
    for _ in range(3):
        # Another group that ends may remove the empty folders that it lies in in between.
        with suppress(FileNotFoundError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return


def folders(pending: Path) -> list[Path]:
    """Return the folders of all groups; whatever else lies there is passed over."""
    found = (started.absolute(pending) / GROUPS).glob("*")
    return sorted(each for each in found if journal.KEY.fullmatch(each.name) and each.is_dir() and not each.is_symlink())


def forget(pending: Path, identities: Collection[str]) -> None:
    """Take the jobs of these identities, which are done or start anew, out of the groups that no process is at.

    What a process has left that died before it had written which jobs they are is removed.
    """
    for folder in folders(pending):
        there = of(folder).runs
        whole = (folder / FILE).exists() and without(there, identities) == there
        if whole or not (folder / journal.LOCK).exists():
            continue
        # Another may remove it meanwhile.
        with suppress(journal.Held, FileNotFoundError):
            lock = journal.Lock(folder, "sending", journal.PATIENCE)
            found = of(folder)
            if rest := without(found.runs, identities):
                found._replace(runs=rest).write(folder)
            else:
                remove(folder)
            lock.release()


def without(runs: Sequence[Run], identities: Collection[str]) -> list[Run]:
    """Return the runs of other identities than these."""
    return [run for run in runs if run.identity not in identities]


def remove(folder: Path) -> None:
    """Remove a group's files, then its folder and those that it lies in where they are empty."""
    for name in (FILE, f"{FILE}.tmp", journal.LOCK):
        kept.drop(folder / name)
    kept.remove_steps(folder)
    for parent in folder.parents[:2]:
        kept.drop(parent)
