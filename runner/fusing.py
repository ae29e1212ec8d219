"""Jobs of a sweep that differ in numbers alone run as one program each group; which these are, and what they came to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from runner import build, experiment, fused, job, measures, private, signals
from runner.compose import Job
from runner.job import Ended, Outcome, Task
from runner.many import Job as Run


def outcomes(task: Task, jobs: Sequence[Job], folder: Path, first: int) -> Iterator[tuple[list[int], list[Outcome] | None]]:
    """Yield indices of jobs with their outcomes; None stands for outcomes that they only have when they run one by one.

    `folder` is the sweep's, and `first` the number of its first job. Raises Ended where a signal comes.
    """
    chosen = {index: choices for index, each in enumerate(jobs) if (choices := sound(each)) is not None}
    indices = list(chosen)
    yield [index for index in range(len(jobs)) if index not in chosen], None
    for group in fused.groups([jobs[index].cfg for index in indices]):
        mine = [indices[each] for each in group.indices]
        if group.alone is not None:
            print(private.masked(f"{len(mine)} jobs one by one: {group.alone}"), flush=True)
            yield mine, None
            continue
        try:
            with signals.caught() as signal:
                results = fused.run(group, signal)
        # A rule of the user's that raises at one job's rows; which one shows when they run one by one.
        except Exception:
            yield mine, None
            continue

        parts = ((jobs[index], chosen[index], folder / str(first + index)) for index in mine)
        runs = whole(task, parts, results, [lane.loss for lane in group.jobs])
        ids = recorded(task, [jobs[index].cfg for index in mine], runs)
        found = [came_to(jobs[index], each, run_id) for index, (_, each), run_id in zip(mine, results, ids, strict=True)]
        for index, each in zip(mine, found, strict=True):
            task.write(first + index, asdict(each))
        print(told(found), flush=True)
        if interrupted := [each for each in found if each.stopped_by in job.SIGNALS]:
            raise Ended(interrupted[0])
        yield mine, found


def sound(each: Job) -> dict[str, str] | None:
    """Return which files a job's groups picked, or None where it is to run alone.

    That is where it wants pictures, or its configuration is wrong, which it tells when it runs.
    """
    if each.cfg.get("report", {}).get("sweep"):
        return None
    try:
        _ = each.plain
        return job.checked(each.cfg, each.hydra.hydra)
    except Exception:
        return None


def whole(
    task: Task, parts: Iterable[tuple[Job, dict[str, str], Path]], results: Sequence[Any], losses: Sequence[Any]
) -> Iterator[Run]:
    """Yield jobs that have ended as they are recorded, each with its folder."""
    for (each, chosen, folder), (rows, result), loss in zip(parts, results, losses, strict=True):
        rows = measures.measuring(loss, each.cfg.tracking.get("full_loss_every"))(rows, True)
        # It is recorded while the next one is made.
        result = replace(result, last=rows[len(rows) - 1 :], seconds={**result.seconds, "record": 0.0})
        yield Run(about(each, chosen, folder, task), rows, experiment.tags(result), experiment.summary(result, loss))


def about(each: Job, chosen: dict[str, str], folder: Path, task: Task) -> Any:
    """Return what is said of a job once, as when it runs by itself."""
    marks = {**task.marks, "job": folder.name}
    return job.about(each.plain, chosen, each.overrides, folder.absolute(), marks)


def recorded(task: Task, cfgs: Sequence[Any], runs: Iterable[Run]) -> list[str | None]:
    """Record whole runs, together where all go to the sweep's own store in the sweep's own way; returns their ids."""
    if task.recorder is not None and all(cfg.tracking == task.tracking for cfg in cfgs):
        return task.recorder.record(runs)
    ids = []
    for cfg, run in zip(cfgs, runs, strict=True):
        with build.function("tracking", cfg.tracking, "about")(run.about) as recorder:
            recorder.record(run.rows)
            recorder.finish(run.tags, run.metrics)
        ids.append(recorder.run_id)
    return ids


def came_to(each: Job, result: Any, run_id: str | None) -> Outcome:
    """Return a job's result as an Outcome."""
    seconds = sum(result.seconds.values())
    return job.came_to(result, overrides=each.overrides, identity=each.identity, seconds=seconds, run_id=run_id)


def told(found: Sequence[Outcome]) -> str:
    """Say in a line what a group came to."""
    endings = Counter(str(each.ending) for each in found)
    return f"{len(found)} jobs as one program: " + ", ".join(f"{count} {ending}" for ending, count in endings.items())
