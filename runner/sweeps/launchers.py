"""Jobs by joblib, on Ray, and by submitit: on a cluster each has its own end, and one that dies leaves the others alone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf, open_dict

from runner.errors import UserError
from runner.security import script_words, secrets
from runner.sweeps import packs, requeue
from runner.sweeps.packs import Batch
from runner.sweeps.task import Outcome, Task, line
from runner.system import startup

# Seconds between looks at jobs that run.
INTERVAL = 0.2
# Workers of joblib for each processor at the most: each is a TensorFlow, with a recorder, and takes 1 GB.
EACH = 8
# Settings that all of submitit's executors know by the same name.
SHARED = {"timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes", "name", "stderr_to_stdout"}


def check_workers(settings: Mapping[str, Any]) -> None:
    """Raise UserError where joblib is to have no workers, more than a machine can hold, or words that it would evaluate."""
    script_words.check(settings, script_words.JOBLIB)
    asked = settings["n_jobs"]
    most = EACH * len(os.sched_getaffinity(0))
    if asked == 0 or asked > most:
        raise UserError(
            f"hydra.launcher.n_jobs must be in 1 … {most}, {EACH} for each processor here, or -1 for one each, got {asked}"
        )


def submitit_settings(launcher: Any) -> dict[str, Any]:
    """Return a launcher's settings as plain data; raises UserError for what a script would take for commands."""
    given = launcher.settings.items()
    plain = {key: OmegaConf.to_container(each, resolve=True) if OmegaConf.is_config(each) else each for key, each in given}
    script_words.submitit(plain, launcher.config.hydra.sweep.dir)
    return plain


def ray_settings(launcher: Any) -> Any:
    """Return a launcher's settings as plain data; raises UserError for a cluster that only a file names."""
    plain: Any = OmegaConf.to_container(launcher.settings["ray"], resolve=True)
    script_words.ray(plain)
    return plain


def joblib(launcher: Any, batch: Batch, first: int) -> Sequence[JobReturn]:
    """Run jobs by joblib, whose workers stay for the next batch; raises what it raises where one of them dies."""
    from hydra_plugins.hydra_joblib_launcher.joblib_launcher import JoblibLauncher
    from joblib import effective_n_jobs

    # loky ends its workers, and takes its semaphores and folders away, where Python itself ends.
    startup.wanted = False

    def by(task: Any, batch: Batch, first: int) -> Sequence[JobReturn]:
        published = JoblibLauncher(**launcher.settings)
        published.setup(hydra_context=launcher.hydra_context, task_function=task, config=launcher.config)
        return published.launch(batch, first)

    return packs.launch(launcher, packs.EACH * effective_n_jobs(launcher.settings["n_jobs"]), by, batch, first)


def submitit(launcher: Any, cluster: str, batch: Batch, first: int) -> Sequence[JobReturn]:
    """Run jobs by submitit: as an array on Slurm, and as many at once as there are processors for on this machine."""
    settings = submitit_settings(launcher)
    processors = settings["cpus_per_task"] or 1
    at_once = max(1, len(os.sched_getaffinity(0)) // processors)
    workers = settings["array_parallelism"] if cluster == "slurm" else at_once

    def by(task: Any, batch: Batch, first: int) -> list[JobReturn]:
        with environment({"PYTHONPATH": import_path(), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": str(processors)}):
            return submitted(launcher, executor_of(cluster, **settings), task, batch, first, at_once)

    # Each starts a process of its own.
    return packs.launch(launcher, workers, by, batch, first)


def submitted(launcher: Any, executor: Any, task: Any, batch: Batch, first: int, at_once: int) -> list[JobReturn]:
    """Run jobs by submitit's executor: all of them are Slurm's to start, and on this machine so many at once."""
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher

    # What composes and runs a job where it has arrived.
    published = BaseSubmititLauncher()
    published.setup(hydra_context=launcher.hydra_context, task_function=task, config=launcher.config)
    job = requeue.Call(published)
    state = Singleton.get_state()
    calls = [(list(each), "hydra.sweep.dir", number, f"job_{number}", state) for number, each in enumerate(batch, first)]
    if executor.cluster == "slurm":
        from submitit import SlurmJob

        from runner.sweeps import slurm_queue

        # The accounting may be missing, and names no task that has just died.
        SlurmJob.watcher = slurm_queue.Queue()
        ended = followed(dict(enumerate(executor.map_array(job, *zip(*calls, strict=True)))), iter(()), 0)
    else:
        ended = followed({}, ((i, executor.submit(job, *call)) for i, call in enumerate(calls)), at_once)
    returns = {i: outcome_of(partial(only, done), task, batch[i], first + i) for i, done in ended}
    return [returns[i] for i in range(len(batch))]


def only(job: Any) -> JobReturn:
    """Return the one result of a submitit job; raises what submitit raises where there is none."""
    return job.results()[0]


def executor_of(cluster: str, *, submitit_folder: str, **settings: Any) -> Any:
    """Return submitit's executor; raises what it raises for a setting that it does not know."""
    import submitit

    # A pickle runs as code where it is read: nobody else may enter.
    Path(submitit_folder.partition("%")[0]).mkdir(parents=True, exist_ok=True, mode=0o700)
    timeouts = {"slurm_max_num_timeout": settings.pop("max_num_timeout")} if cluster == "slurm" else {}
    executor = submitit.AutoExecutor(submitit_folder, cluster=cluster, **timeouts)
    executor.update_parameters(**{key if key in SHARED else f"{cluster}_{key}": value for key, value in settings.items()})
    return executor


def followed(running: dict[int, Any], waiting: Iterator[tuple[int, Any]], at_once: int) -> Iterator[tuple[int, Any]]:
    """Yield jobs as they end, and start those that wait while fewer than so many run; cancels the rest where it is left."""
    try:
        while True:
            while len(running) < at_once and (started := next(waiting, None)):
                running[started[0]] = started[1]
            if not running:
                return
            for i in [i for i, job in running.items() if job.done()]:
                yield i, running.pop(i)
            time.sleep(INTERVAL)
    finally:
        for job in running.values():
            # One that has just ended cannot be cancelled any more.
            job.cancel(check=False)


def ray(launcher: Any, batch: Batch, first: int) -> Sequence[JobReturn]:
    """Run jobs on a Ray cluster."""
    settings = ray_settings(launcher)
    cluster, remote = joined(settings["init"]), settings["remote"]
    workers = max(1, int(cluster.cluster_resources().get("CPU", 1) / (remote.get("num_cpus") or 1)))
    return packs.launch(launcher, packs.EACH * workers, partial(sent, launcher, cluster, DictConfig(remote)), batch, first)


def sent(launcher: Any, cluster: Any, remote: DictConfig, task: Any, batch: Batch, first: int) -> list[JobReturn]:
    """Run jobs on a Ray cluster that was joined; those that have not ended are cancelled where this is left early."""
    from hydra_plugins.hydra_ray_launcher._launcher_util import launch_job_on_ray

    context = launcher.hydra_context
    running: dict[Any, int] = {}
    returns: dict[int, JobReturn] = {}
    state = Singleton.get_state()
    try:
        for number, overrides in enumerate(batch, first):
            cfg = context.config_loader.load_sweep_config(launcher.config, list(overrides))
            with open_dict(cfg):
                cfg.hydra.job.id, cfg.hydra.job.num = f"job_{number}", number
            running[launch_job_on_ray(context, remote, cfg, task, state)] = number
        while running:
            done = cluster.wait(list(running))[0][0]
            number = running.pop(done)
            returns[number] = outcome_of(partial(cluster.get, done), task, batch[number - first], number)
    finally:
        for each in running:
            cluster.cancel(each, force=True)
    return [returns[number] for number in sorted(returns)]


def joined(init: Mapping[str, Any]) -> Any:
    """Return Ray, after it has joined the cluster; raises ImportError without the extra, and what Ray raises."""
    # Read at Ray's import. It tells its makers nothing; and it shows its token, where there is one, to a cluster that is named,
    # which Ray itself does only where it has found the cluster.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    token = Path("~/.ray/auth_token").expanduser().is_file() or {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    if init["address"] is not None and token:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray

    if not ray.is_initialized():
        # Where a worker finds this package, which may be a checkout.
        ray.init(**{"runtime_env": {"env_vars": {"PYTHONPATH": import_path()}}, **init})
    return ray


def outcome_of(result: Callable[[], JobReturn], task: Any, overrides: Sequence[str], number: int) -> JobReturn:
    """Return what a job came to: what it returns, or else has written down, or else that its process is gone; and print it.

    What was lost of a pack is an exception. Raises Ended where a failure ends the sweep.
    """
    try:
        returned = result()
    except Exception as error:
        returned = JobReturn(overrides, status=JobStatus.FAILED, _return_value=error)
        if isinstance(task, Task):
            written = task.read(number)
            if not isinstance(written, Outcome):
                written = task.died(overrides, error)
            returned = JobReturn(overrides, status=JobStatus.COMPLETED, _return_value=written)
    # Its own process has said so to a file.
    if isinstance(outcome := returned._return_value, Outcome):
        secrets.tell(line(outcome))
        task.judge([outcome])
    elif isinstance(task, packs.Pack):
        task.task.judge(task.ended(number, returned))
    return returned


def import_path() -> str:
    """Return what lets another process find this package and its plugins, where they are not installed but a checkout."""
    package = Path(__file__).parents[1]
    own = [str(package / "_plugins"), str(package.parent), str(package / "_hydra")]
    # The folder of the command, where the user's own modules may be, comes last.
    return os.pathsep.join([*own, *filter(None, [os.environ.get("PYTHONPATH")]), os.getcwd()])


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the processes that are started in this block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
