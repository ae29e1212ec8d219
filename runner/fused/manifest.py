"""The manifest of a group: a file in the group's folder below `tracking.pending` lists the jobs that are not recorded yet.

The file exists once the group has saved a checkpoint or its recording has begun.
"""

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
    """The run of a job: its config digest (`identity`) and its run key."""

    identity: str
    key: str
    folder: str | None = None  # of the run's files, once its recording has begun


class Jobs(NamedTuple):
    """The content of the file: the jobs' runs, the columns of their program, and how often the group has been resumed."""

    runs: list[Run]
    columns: tuple[str, ...] = ()
    resumed: int = 0

    def write(self, folder: Path) -> None:
        """Write the manifest to a folder, atomically."""
        new = folder / f"{FILE}.tmp"
        new.write_text(json.dumps(self._asdict()), encoding="utf-8")
        new.replace(folder / FILE)


def of(folder: Path) -> Jobs:
    """Return the jobs of a group; no jobs if there is no file, or, with a warning, if it cannot be read."""
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
    """Return the path of a new folder for a group."""
    return started.absolute(pending) / GROUPS / uuid.uuid4().hex


def make(folder: Path) -> None:
    """Make a group's folder."""
    for _ in range(3):
        # A group that ends meanwhile may remove the empty parent folders.
        with suppress(FileNotFoundError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return


def folders(pending: Path) -> list[Path]:
    """Return the folders of all groups; other files and folders are ignored."""
    found = (started.absolute(pending) / GROUPS).glob("*")
    return sorted(each for each in found if journal.KEY.fullmatch(each.name) and each.is_dir() and not each.is_symlink())


def forget(pending: Path, identities: Collection[str]) -> None:
    """Remove the jobs of these config digests, which are done or start anew, from the groups that no process has locked.

    Also remove the folder of a process that died before it wrote the manifest.
    """
    for folder in folders(pending):
        there = of(folder).runs
        whole = (folder / FILE).exists() and without(there, identities) == there
        if whole or not (folder / journal.LOCK).exists():
            continue
        # Another process may remove the folder meanwhile.
        with suppress(journal.Held, FileNotFoundError):
            lock = journal.Lock(folder, "sending", journal.PATIENCE)
            found = of(folder)
            if rest := without(found.runs, identities):
                found._replace(runs=rest).write(folder)
            else:
                remove(folder)
            lock.release()


def without(runs: Sequence[Run], identities: Collection[str]) -> list[Run]:
    """Return the runs whose config digest is not among these."""
    return [run for run in runs if run.identity not in identities]


def remove(folder: Path) -> None:
    """Remove a group's files and checkpoints, and then its folder and the two parent folders if they are empty."""
    for name in (FILE, f"{FILE}.tmp", journal.LOCK):
        kept.drop(folder / name)
    kept.remove_steps(folder)
    for parent in folder.parents[:2]:
        kept.drop(parent)
