"""Packs: slices of a batch of jobs. A worker runs each pack as one task, with as few programs as possible."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext
from omegaconf import DictConfig

from runner.errors import first_line
from runner.security import secrets
from runner.sweeps import composer, sweeper
from runner.sweeps.task import Outcome, Task, as_outcome
from runner.system import folders, orphans

Batch = Sequence[Sequence[str]]
# Packs per worker, for workers that run several packs. At the end, idle workers wait for at most a quarter of a worker's share.
EACH = 4
JOBS = "jobs.json"


def launch(launcher: Any, packs: int, by: Callable[[Any, Batch, int], Any], batch: Batch, first: int) -> Sequence[JobReturn]:
    """Run jobs by `by(task, batch, first)`, in this number of packs or in packs of `sweep.pack` jobs; return their JobReturns.

    If a pack would have one job, each job is a task instead. If a pack was lost, its error is raised after all packs have
    ended; the outcomes of its jobs so far are in the jobs' files. The launcher's next packs are then half as large.
    """
    task, largest = launcher.task_function, launcher.largest or len(batch)
    launcher.largest = None
    size = min(launcher.config.sweep.pack or -(-len(batch) // packs), largest)
    if size == 1 or not isinstance(task, Task):
        return by(task, batch, first)
    pack = Pack(launcher.hydra_context, task, launcher.config)
    starts = range(0, len(batch), size)
    for number, start in enumerate(starts, first):
        pack.write(number, first + start, batch[start : start + size])
    # The launcher composes a stand-in job for each pack. Only the number and the folder of this job are used.
    folder = f"hydra.sweep.subdir=packs/{task.folder.name}/${{hydra.job.num}}"
    stand_ins = [(folder, "hydra.output_subdir=null", f"sweep.pack={len(batch[start : start + size])}") for start in starts]
    found = [each._return_value for each in by(pack, stand_ins, first)]
    # These files may hold secrets that the jobs need, so they do not stay.
    for number in range(first, first + len(stand_ins)):
        (pack.folder / str(number) / JOBS).unlink()
    if lost := [each for each in found if not isinstance(each, list)]:
        launcher.largest = size // 2
        raise lost[0]
    outcomes = [outcome for each in found for outcome in each]
    return [JobReturn(each.overrides, status=JobStatus.COMPLETED, _return_value=each) for each in outcomes]


class Pack:
    """The task that runs the jobs of a pack and returns their outcomes in order; a pack has the number of its stand-in job.

    In the sweep's folder, `packs/TASK/NUMBER/jobs.json` lists the jobs, and `console.txt` beside it holds their output.
    """

    def __init__(self, context: HydraContext, task: Task, master: DictConfig) -> None:
        self.context, self.task, self.master = context, task, master
        self.folder = task.folder.parents[1] / "packs" / task.folder.name

    def write(self, number: int, first: int, batch: Batch) -> None:
        """Write `jobs.json` for the process that runs pack `number`; `first` is the number of the pack's first job."""
        folder = self.folder / str(number)
        folders.claim(folder, "set hydra.sweep.dir=another folder")
        (folder / JOBS).write_text(json.dumps([first, [list(each) for each in batch]]), encoding="utf-8")

    def __call__(self, cfg: DictConfig) -> list[Outcome]:
        """Run a pack, or the remaining jobs of an interrupted pack; raises Ended if one of its jobs ends the sweep."""
        folder, said = self.folder / str(HydraConfig.get().job.num), Tee()
        first, batch = json.loads((folder / JOBS).read_text(encoding="utf-8"))
        jobs = dict(enumerate(batch, first))
        done = {number: outcome for number in jobs if (outcome := self.outcome(number))}
        left = {number: each for number, each in jobs.items() if number not in done}
        # From here on, any of these jobs may kill this process.
        for number in left:
            self.task.begin(number)
        try:
            # The user may not see a worker's standard error.
            with redirect_stdout(said), redirect_stderr(said):
                values = self.run([*left.values()], [*left]) if left else []
            done |= {number: as_outcome(left[number], value) for number, value in zip(left, values, strict=True)}
            return [done[number] for number in jobs]
        finally:
            for number in left:
                self.task.forget(number)
            with secrets.unlinked(folder / "console.txt").open("a", encoding="utf-8") as file:
                file.write(said.getvalue())
            orphans.leave()

    def outcome(self, number: int) -> Outcome | None:
        """Return a job's outcome from before the pack was interrupted; None if there is none or the job was interrupted."""
        found = self.task.read(number)
        return found if isinstance(found, Outcome) and not found.interrupted else None

    def run(self, batch: Batch, numbers: Sequence[int]) -> list[Any]:
        """Run jobs and return the value of each; after an error that is not a job's, the jobs run one by one."""
        task = self.task
        task.composed = composer.Composer(self.context.config_loader, self.master)
        task.record_by(task.composed(batch[0]).cfg.tracking)
        made = self.context, task, self.master
        try:
            return [each._return_value for each in sweeper.numbered(*made, batch, numbers)]
        except Exception as error:
            logging.getLogger(__name__).info("the pack failed", exc_info=True)
            secrets.tell(f"{len(batch)} jobs one by one: {first_line(error)}")
        for number in numbers:
            task.forget(number)
        alone = sweeper.one_by_one(*made)
        pairs = zip(numbers, batch, strict=True)
        return [task.read(number) or alone.launch([each], number)[0]._return_value for number, each in pairs]

    def ended(self, number: int, returned: JobReturn) -> list[Outcome]:
        """Print the console output of a pack, and return the outcomes of its jobs, as many as there are."""
        folder = self.folder / str(number)
        if (console := folder / "console.txt").exists():
            secrets.tell_lines(console.read_text(encoding="utf-8"), end="")
        if isinstance(returned._return_value, list):
            return returned._return_value
        first, batch = json.loads((folder / JOBS).read_text(encoding="utf-8"))
        written = (self.task.read(each) for each in range(first, first + len(batch)))
        return [each for each in written if isinstance(each, Outcome)]


class Tee(io.StringIO):
    """Stores the printed text and prints it too."""

    def __init__(self) -> None:
        super().__init__()
        self.console = sys.stdout

    def write(self, text: str) -> int:
        """Store a text and print it."""
        self.console.write(text)
        return super().write(text)

    def flush(self) -> None:
        """Flush the console."""
        self.console.flush()
