"""Launch jobs by joblib, on Ray and by submitit. On Ray and by submitit, a job that dies does not end the others."""

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

# Seconds between checks of running jobs.
INTERVAL = 0.2
# Maximum number of joblib workers per processor. Each worker has its own TensorFlow and recorder and takes 1 GB.
EACH = 8
# Settings with the same name in all executors of submitit.
SHARED = {"timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes", "name", "stderr_to_stdout"}


def check_workers(settings: Mapping[str, Any]) -> None:
    """Raise UserError if joblib would get no workers, too many for this machine, or a text that it would evaluate as code."""
    script_words.check(settings, script_words.JOBLIB)
    asked = settings["n_jobs"]
    most = EACH * len(os.sched_getaffinity(0))
    if asked == 0 or asked > most:
        raise UserError(
            f"hydra.launcher.n_jobs must be in 1 … {most}, {EACH} for each processor here, or -1 for one each, got {asked}"
        )


def submitit_settings(launcher: Any) -> dict[str, Any]:
    """Return a launcher's settings as plain data; raises UserError for a text that a batch script could run as a command."""
    given = launcher.settings.items()
    plain = {key: OmegaConf.to_container(each, resolve=True) if OmegaConf.is_config(each) else each for key, each in given}
    script_words.submitit(plain, launcher.config.hydra.sweep.dir)
    return plain


def ray_settings(launcher: Any) -> Any:
    """Return the settings of Ray as plain data; raises UserError for a cluster that only a configuration file names."""
    plain: Any = OmegaConf.to_container(launcher.settings["ray"], resolve=True)
    script_words.ray(plain)
    return plain


def joblib(launcher: Any, batch: Batch, first: int) -> Sequence[JobReturn]:
    """Run jobs by joblib, whose workers stay for the next batch; raises joblib's error if a worker dies."""
    from hydra_plugins.hydra_joblib_launcher.joblib_launcher import JoblibLauncher
    from joblib import effective_n_jobs

    # loky ends its workers and removes its semaphores and folders only if Python exits normally.
    startup.wanted = False

    def by(task: Any, batch: Batch, first: int) -> Sequence[JobReturn]:
        published = JoblibLauncher(**launcher.settings)
        published.setup(hydra_context=launcher.hydra_context, task_function=task, config=launcher.config)
        return published.launch(batch, first)

    return packs.launch(launcher, packs.EACH * effective_n_jobs(launcher.settings["n_jobs"]), by, batch, first)


def submitit(launcher: Any, cluster: str, batch: Batch, first: int) -> Sequence[JobReturn]:
    """Run jobs by submitit: on Slurm as a job array; on this machine as many at once as the processors allow."""
    settings = submitit_settings(launcher)
    processors = settings["cpus_per_task"] or 1
    at_once = max(1, len(os.sched_getaffinity(0)) // processors)
    workers = settings["array_parallelism"] if cluster == "slurm" else at_once

    def by(task: Any, batch: Batch, first: int) -> list[JobReturn]:
        with environment({"PYTHONPATH": import_path(), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": str(processors)}):
            return submitted(launcher, executor_of(cluster, **settings), task, batch, first, at_once)

    # Each task starts its own process.
    return packs.launch(launcher, workers, by, batch, first)


def submitted(launcher: Any, executor: Any, task: Any, batch: Batch, first: int, at_once: int) -> list[JobReturn]:
    """Run jobs by submitit's executor: Slurm gets all jobs together; on this machine `at_once` jobs run at a time."""
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher

    # The published launcher composes and runs a job in the task's process.
    published = BaseSubmititLauncher()
    published.setup(hydra_context=launcher.hydra_context, task_function=task, config=launcher.config)
    job = requeue.Call(published)
    state = Singleton.get_state()
    calls = [(list(each), "hydra.sweep.dir", number, f"job_{number}", state) for number, each in enumerate(batch, first)]
    if executor.cluster == "slurm":
        from submitit import SlurmJob

        from runner.sweeps import slurm_queue

        # Slurm's accounting may be missing, and it does not list a task that has just died.
        SlurmJob.watcher = slurm_queue.Queue()
        ended = followed(dict(enumerate(executor.map_array(job, *zip(*calls, strict=True)))), iter(()), 0)
    else:
        ended = followed({}, ((i, executor.submit(job, *call)) for i, call in enumerate(calls)), at_once)
    returns = {i: outcome_of(partial(only, done), task, batch[i], first + i) for i, done in ended}
    return [returns[i] for i in range(len(batch))]


def only(job: Any) -> JobReturn:
    """Return the only result of a submitit job; raises submitit's error if there is none."""
    return job.results()[0]


def executor_of(cluster: str, *, submitit_folder: str, **settings: Any) -> Any:
    """Return submitit's executor; raises submitit's error for an unknown setting."""
    import submitit

    # Reading a pickle runs code, so only this user may access the folder.
    Path(submitit_folder.partition("%")[0]).mkdir(parents=True, exist_ok=True, mode=0o700)
    timeouts = {"slurm_max_num_timeout": settings.pop("max_num_timeout")} if cluster == "slurm" else {}
    executor = submitit.AutoExecutor(submitit_folder, cluster=cluster, **timeouts)
    executor.update_parameters(**{key if key in SHARED else f"{cluster}_{key}": value for key, value in settings.items()})
    return executor


def followed(running: dict[int, Any], waiting: Iterator[tuple[int, Any]], at_once: int) -> Iterator[tuple[int, Any]]:
    """Yield each job when it ends, with its index; start waiting jobs while fewer than `at_once` run.

    If the iteration ends early, the running jobs are cancelled.
    """
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
            # A job that has just ended cannot be cancelled.
            job.cancel(check=False)


def ray(launcher: Any, batch: Batch, first: int) -> Sequence[JobReturn]:
    """Run jobs on a Ray cluster."""
    settings = ray_settings(launcher)
    cluster, remote = joined(settings["init"]), settings["remote"]
    workers = max(1, int(cluster.cluster_resources().get("CPU", 1) / (remote.get("num_cpus") or 1)))
    return packs.launch(launcher, packs.EACH * workers, partial(sent, launcher, cluster, DictConfig(remote)), batch, first)


def sent(launcher: Any, cluster: Any, remote: DictConfig, task: Any, batch: Batch, first: int) -> list[JobReturn]:
    """Run jobs on a joined Ray cluster; after an error, the jobs that have not ended are cancelled."""
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
    """Join the cluster and return the module `ray`; raises ImportError without the extra, and Ray's errors."""
    # Ray reads these variables at import. Usage statistics are off. If the user has a token, Ray sends it to a cluster that is
    # named by its address too; by default Ray sends it only to a cluster that it found itself.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    token = Path("~/.ray/auth_token").expanduser().is_file() or {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    if init["address"] is not None and token:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray

    if not ray.is_initialized():
        # A worker finds this package by PYTHONPATH, because the package may be a checkout.
        ray.init(**{"runtime_env": {"env_vars": {"PYTHONPATH": import_path()}}, **init})
    return ray


def outcome_of(result: Callable[[], JobReturn], task: Any, overrides: Sequence[str], number: int) -> JobReturn:
    """Return a job's JobReturn and print its outcome; if its process died, the outcome is that of the job's file or a failure.

    For a pack whose process died, the return value is the exception. Raises Ended if a failed job ends the sweep.
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
    # The job's process prints this line only to a file.
    if isinstance(outcome := returned._return_value, Outcome):
        secrets.tell(line(outcome))
        task.judge([outcome])
    elif isinstance(task, packs.Pack):
        task.task.judge(task.ended(number, returned))
    return returned


def import_path() -> str:
    """Return the PYTHONPATH by which another process finds this package and its plugins, also in a checkout."""
    package = Path(__file__).parents[1]
    own = [str(package / "_plugins"), str(package.parent), str(package / "_hydra")]
    # The current folder comes last; it may hold the user's modules.
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
