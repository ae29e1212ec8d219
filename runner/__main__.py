"""`python -m runner`: Hydra composes the configuration, `experiment.run` does the rest; nothing heavy is imported before."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import hydra
from omegaconf import DictConfig

from runner import allow, config, private, quick, started
from runner.errors import UserError, first_line

# In a wheel the configuration lies inside the package, in a checkout beside it.
CONF = next(path for path in (Path(__file__).parent / "conf", Path(__file__).parents[1] / "conf") if path.is_dir())
# Where Hydra finds the plugins of a checkout; a wheel installs them beside the package.
PLUGINS = Path(__file__).parent / "_hydra"
full_error = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
exit_code = 0


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def task(cfg: DictConfig) -> None:
    """Run one job."""
    answer(run, cfg)


def run(cfg: DictConfig) -> int:
    """Run one job and return its exit code."""
    from rich.console import Console

    # NumPy comes with it, which --cfg job has no use for.
    from runner import job

    return job.SIGNALS.get(job.run(cfg, Console()).stopped_by or "", 0)


def answer(work: Callable[[DictConfig], int], cfg: DictConfig) -> None:
    """Do what a command is for, and keep the exit code; an error is told in one line, and its code is 1."""
    global exit_code
    try:
        exit_code = work(cfg)
    except Exception as error:
        if full_error:
            raise
        complain(error)
        exit_code = 1


def complain(error: BaseException) -> None:
    """Print an error as the one line that a user sees."""
    print(private.masked(private.printable(f"error: {first_line(error)}")), file=sys.stderr)


def main(task: Callable[[], None] = task) -> int:
    """Return the exit code: 0 for every ending, 1 for an error, 128 and the signal's number for an interruption."""
    global exit_code
    exit_code = 0
    config.register()
    if PLUGINS.is_dir() and str(PLUGINS) not in sys.path:
        sys.path.append(str(PLUGINS))
    # Hydra then raises what it would else print over several lines.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    mask = os.umask(0o077)
    try:
        with started.here(), allow.named(sys.argv):
            task()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception as error:
        if full_error:
            raise
        complain(UserError(config.explain(error)))
        return 1
    finally:
        os.umask(mask)
        if not full_error:
            del os.environ["HYDRA_FULL_ERROR"]
    return exit_code


def command(main: Callable[[], int] = main) -> None:
    """Run the command line and end the process."""
    # What a user's files name is found beside them, as it is by `python -m`, where an installed script runs.
    if not sys.flags.safe_path and not {"", os.getcwd()} & {*sys.path}:
        sys.path.append(os.getcwd())
    # A log that cannot be written, on a disk that is full, is no reason for a traceback of its own.
    logging.raiseExceptions = False
    try:
        code = main()
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    quick.leave(code)


if __name__ == "__main__":
    command()
