"""Run the jobs of a sweep that differ only in numbers in groups, each group as one program, and record their outcomes."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from runner import experiment, loop
from runner.cli import job
from runner.cli import run as recording
from runner.cli.job import tracker
from runner.errors import UserError, first_line
from runner.fused import checkpoints, groups, lockstep, manifest
from runner.fused.checkpoints import Checkpoints
from runner.loop import Ending
from runner.losses import measures
from runner.security import secrets, trust
from runner.sweeps.composer import Job
from runner.sweeps.task import Ended, Outcome, Task
from runner.system import signals, started
from runner.tracking.store.bulk_runs import Job as Run


class Batch(NamedTuple):
    """Jobs that are launched together."""

    task: Task
    jobs: Sequence[Job]
    chosen: Mapping[int, dict[str, str]]  # for each job that may be fused, its choice of each config group
    folder: Path  # of the sweep
    numbers: Sequence[int]  # the job numbers

    def cfgs(self, indices: Sequence[int]) -> list[Any]:
        """Return the configurations of jobs."""
        return [self.jobs[index].cfg for index in indices]

    def places(self, indices: Sequence[int]) -> list[Path]:
        """Return the folders of jobs."""
        return [started.absolute(self.folder / str(self.numbers[index])) for index in indices]


def outcomes(
    task: Task, jobs: Sequence[Job], folder: Path, numbers: Sequence[int]
) -> Iterator[tuple[list[int], list[Outcome] | None]]:
    """Yield indices of jobs with their outcomes; None in place of outcomes means that these jobs have to run one by one.

    `folder` is the sweep's folder, and `numbers` are the job numbers. Raises Ended if a signal ended the jobs, and UserError if
    an interrupted group cannot be continued.
    """
    chosen = {index: choices for index, each in enumerate(jobs) if (choices := sound(each)) is not None}
    batch = Batch(task, jobs, chosen, folder, numbers)
    yield [index for index in range(len(jobs)) if index not in chosen], None
    rest = list(chosen)
    for mine, kept in interrupted(batch, rest):
        rest = sorted({*rest} - {*mine})
        yield mine, continued(batch, mine, kept)
    with signals.after():
        found = lockstep.groups(batch.cfgs(rest))
    for group in found:
        mine = [rest[each] for each in group.indices]
        if group.alone is not None:
            secrets.tell(f"{len(mine)} jobs one by one: {group.alone}")
            yield mine, None
            continue
        cfg, identities = jobs[mine[0]].cfg, [jobs[index].identity for index in mine]
        kept = checkpoints.new(pending(batch.cfgs(mine)), identities, group.columns, cfg.checkpoint.every_seconds)
        yield mine, came(batch, mine, group, kept)


def pending(cfgs: Sequence[Any]) -> Path | None:
    """Return the outbox folder below which a group saves its checkpoints.

    None if the jobs have several outbox folders or a job has none: the runs could not be found again.
    """
    folders = {str(each.tracking.get("pending") or "") for each in cfgs}
    if len(folders) > 1 or not all(folders):
        return None
    trust.folder("tracking.pending", where := folders.pop())
    return Path(where)


def interrupted(batch: Batch, indices: Sequence[int]) -> Iterator[tuple[list[int], Checkpoints]]:
    """Yield the jobs that continue an interrupted group, with its checkpoints; drop saved jobs that `resume=false` restarts."""
    found: dict[tuple[Path | None, bool], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index in indices:
        each = batch.jobs[index]
        found[pending([each.cfg]), bool(each.cfg.resume)][each.identity].append(index)
    every = batch.jobs[indices[0]].cfg.checkpoint.every_seconds if indices else None
    for (folder, resume), alike in found.items():
        if folder is not None and resume:
            wanted = {identity: len(same) for identity, same in alike.items()}
            with checkpoints.interrupted(folder, wanted, every) as those:
                for kept in those:
                    yield [alike[identity].pop(0) for identity in kept.identities], kept
        elif folder is not None:
            manifest.forget(folder, alike.keys())


def continued(batch: Batch, mine: list[int], kept: Checkpoints) -> list[Outcome] | None:
    """Continue an interrupted group and return the outcomes of its jobs, or None if the jobs have to run one by one."""
    try:
        group = groups.again(batch.cfgs(mine), kept.jobs.columns)
    except Exception:
        # Something that the jobs depend on has changed. The error is reported when the jobs run one by one.
        kept.close()
        return None
    try:
        start = kept.restore(group)
    except BaseException:
        kept.close()
        raise
    step = start[0].taken if start else 0
    secrets.tell(f"continues {len(mine)} jobs as one program from step {step}; resume=false starts anew")
    return came(batch, mine, group, kept, *(start or ()))


def came(batch: Batch, mine: list[int], group: lockstep.Group, kept: Checkpoints, *start: Any) -> list[Outcome] | None:
    """Run a group and return its outcomes, or None if its jobs have to run one by one.

    `start` holds the state and the `fill` function of an interrupted group.
    """
    try:
        with signals.caught() as signal:
            results = lockstep.run(group, signal, kept.save, *start)
    # For example, a user's stopping rule raises at the rows of one job. Running one by one shows which job.
    except Exception as error:
        kept.remove()
        if start:
            secrets.tell(f"{len(mine)} jobs one by one, from step 0: {first_line(error)}")
        return None
    try:
        found = noted(batch, mine, results, [lane.loss for lane in group.jobs], kept)
    finally:
        kept.close()
    secrets.tell_lines(told(found))
    if ended := [each for each in found if each.stopped_by in job.SIGNALS]:
        raise Ended(ended[0])
    return found


def noted(batch: Batch, mine: list[int], results: Sequence[Any], losses: Sequence[Any], kept: Checkpoints) -> list[Outcome]:
    """Measure and record ended jobs, write their outcomes to the jobs' files, and return the outcomes."""
    every = [cfg.tracking.get("full_loss_every") for cfg in batch.cfgs(mine)]
    results = [measured(*each) for each in zip(losses, every, results, strict=True)]
    results = [(rows, summed(result, loss)) for loss, (rows, result) in zip(losses, results, strict=True)]
    kept.recording(batch.places(mine))
    ids = recorded(batch.task, batch.cfgs(mine), partial(whole, batch, mine, results, kept))
    jobs = [batch.jobs[index] for index in mine]
    found = [outcome(each, result, run_id) for each, (_, result), run_id in zip(jobs, results, ids, strict=True)]
    for index, each in zip(mine, found, strict=True):
        batch.task.write(batch.numbers[index], asdict(each))
    kept.recorded([each.interrupted for each in found])
    return found


def sound(each: Job) -> dict[str, str] | None:
    """Return a job's choice of each config group, or None if the job has to run alone.

    A job runs alone if `report.sweep` is set, or if its configuration is invalid; its run then reports the error.
    """
    if each.cfg.get("report", {}).get("sweep"):
        return None
    try:
        _ = each.plain
        return job.checked(each.cfg, each.hydra.hydra)
    except Exception:
        return None


def whole(batch: Batch, mine: Sequence[int], results: Sequence[Any], kept: Checkpoints) -> Iterator[Run]:
    """Yield each ended job as a run to record, with its folder."""
    again = {"resumed": str(kept.jobs.resumed)} if kept.jobs.resumed else {}
    for index, place, (rows, result), run in zip(mine, batch.places(mine), results, kept.jobs.runs, strict=True):
        each = batch.jobs[index]
        said = about(each, batch.chosen[index], place, batch.task)
        if run.folder is not None:
            said = replace(said, folder=Path(run.folder))
        yield Run(
            said,
            rows,
            recording.tags(result) | again,
            {f"system/{name}": value for name, value in result.summary.items()},
            run.key,
        )


def measured(loss: Any, every: int | None, ended: tuple[Any, Any]) -> tuple[Any, Any]:
    """Return a job's rows and result as when it runs alone: measured, and with the best row by the measured quantity."""
    rows, result = ended
    if not loss.measures and loss.seed is None:
        return ended
    of = measures.best_of(loss)
    rows = measures.measuring(loss, every)(rows, result.ending is not Ending.INTERRUPTED)
    return rows, replace(result, last=rows[len(rows) - 1 :], best=loop.lower(None, rows, of), best_of=of)


def summed(result: Any, loss: Any) -> Any:
    """Return a job's result with its summary; its recording time is 0, for a job is recorded while the next one is prepared."""
    result = replace(result, seconds={**result.seconds, "record": 0.0})
    return replace(result, summary=experiment.plain(recording.summed(result, loss)))


def about(each: Job, chosen: dict[str, str], folder: Path, task: Task) -> Any:
    """Return the About of a job's run, as when the job runs alone."""
    marks = {**task.marks, "job": folder.name}
    return job.about(each.plain, chosen, each.overrides, folder, marks)


def recorded(task: Task, cfgs: Sequence[Any], runs: Callable[[], Iterable[Run]]) -> list[str | None]:
    """Record whole runs and return their ids; the sweep's recorder records them together if all are tracked as it is."""
    if task.recorder is not None and all(cfg.tracking == task.tracking for cfg in cfgs):
        try:
            return task.recorder.record(runs())
        except UserError as error:
            # The recorder process died. A new process replaces the runs that the dead one recorded.
            logging.getLogger(__name__).info("the jobs are recorded again: %s", first_line(error))
            return task.recorder.record(runs())
    ids = []
    for cfg, run in zip(cfgs, runs(), strict=True):
        with tracker(cfg.tracking).run(run.about) as recorder:
            recorder.record(run.rows)
            recorder.finish(run.tags, run.metrics)
        ids.append(recorder.run_id)
    return ids


def outcome(each: Job, result: Any, run_id: str | None) -> Outcome:
    """Return a job's result as an Outcome."""
    seconds = sum(result.seconds.values())
    return Outcome.of(result, overrides=each.overrides, identity=each.identity, seconds=seconds, run_id=run_id)


def told(found: Sequence[Outcome]) -> str:
    """Return the message that counts the endings of a group's jobs."""
    endings = Counter(str(each.ending) for each in found)
    return f"{len(found)} jobs as one program: " + ", ".join(f"{count} {ending}" for ending, count in endings.items())
