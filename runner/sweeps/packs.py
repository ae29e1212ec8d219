"""Packs: a batch of jobs cut into slices, each of which a worker runs as one task, and within it as few programs as may be."""

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
# For a worker that stays for more than one: the last ones then wait for a quarter of a worker's share at most.
EACH = 4
JOBS = "jobs.json"


def launch(launcher: Any, packs: int, by: Callable[[Any, Batch, int], Any], batch: Batch, first: int) -> Sequence[JobReturn]:
    """Run jobs by `by(task, batch, first)`: in so many packs, or such of `sweep.pack` jobs, or each as a task of its own.

    Raises, after all packs have ended, what one of them was lost by: what its jobs came to until then is written down. The
    launcher's next packs are half as large then, until each job is a task.
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
    # The job that a launcher composes in the place of a pack's own has a folder, and nothing else of it is looked at.
    folder = f"hydra.sweep.subdir=packs/{task.folder.name}/${{hydra.job.num}}"
    stand_ins = [(folder, "hydra.output_subdir=null", f"sweep.pack={len(batch[start : start + size])}") for start in starts]
    found = [each._return_value for each in by(pack, stand_ins, first)]
    # They may hold secrets, which jobs need.
    for number in range(first, first + len(stand_ins)):
        (pack.folder / str(number) / JOBS).unlink()
    if lost := [each for each in found if not isinstance(each, list)]:
        launcher.largest = size // 2
        raise lost[0]
    outcomes = [outcome for each in found for outcome in each]
    return [JobReturn(each.overrides, status=JobStatus.COMPLETED, _return_value=each) for each in outcomes]


class Pack:
    """A task that stands for the jobs of a pack, whose number is its own job's; it returns their outcomes, in order.

    In `packs/TASK/NUMBER` of the sweep's folder `jobs.json` says which these are, and `console.txt` is what they have printed.
    """

    def __init__(self, context: HydraContext, task: Task, master: DictConfig) -> None:
        self.context, self.task, self.master = context, task, master
        self.folder = task.folder.parents[1] / "packs" / task.folder.name

    def write(self, number: int, first: int, batch: Batch) -> None:
        """Write down the jobs of a pack, of which the first has this number, for whoever will run it."""
        folder = self.folder / str(number)
        folders.claim(folder, "set hydra.sweep.dir=another folder")
        (folder / JOBS).write_text(json.dumps([first, [list(each) for each in batch]]), encoding="utf-8")

    def __call__(self, cfg: DictConfig) -> list[Outcome]:
        """Run a pack, or what is left of one that was interrupted; raises Ended where one of its jobs ends it."""
        folder, said = self.folder / str(HydraConfig.get().job.num), Tee()
        first, batch = json.loads((folder / JOBS).read_text(encoding="utf-8"))
        jobs = dict(enumerate(batch, first))
        done = {number: outcome for number in jobs if (outcome := self.outcome(number))}
        left = {number: each for number, each in jobs.items() if number not in done}
        # From here on each of them may be what kills this process.
        for number in left:
            self.task.begin(number)
        try:
            # A worker's errors may go where nobody looks.
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
        """Return what a job came to before the pack was interrupted."""
        found = self.task.read(number)
        return found if isinstance(found, Outcome) and not found.interrupted else None

    def run(self, batch: Batch, numbers: Sequence[int]) -> list[Any]:
        """Run jobs, and return the value of each: one by one where something goes wrong that is no job's own."""
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
        """Print what a pack has printed elsewhere, and return the outcomes of its jobs, as many as there are."""
        folder = self.folder / str(number)
        if (console := folder / "console.txt").exists():
            secrets.tell_lines(console.read_text(encoding="utf-8"), end="")
        if isinstance(returned._return_value, list):
            return returned._return_value
        first, batch = json.loads((folder / JOBS).read_text(encoding="utf-8"))
        written = (self.task.read(each) for each in range(first, first + len(batch)))
        return [each for each in written if isinstance(each, Outcome)]


class Tee(io.StringIO):
    """Keeps what is printed, and prints it."""

    def __init__(self) -> None:
        super().__init__()
        self.console = sys.stdout

    def write(self, text: str) -> int:
        """Keep a text and print it."""
        self.console.write(text)
        return super().write(text)

    def flush(self) -> None:
        """Let what is printed be seen."""
        self.console.flush()
