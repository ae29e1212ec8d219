"""The command line: Hydra composes the configuration, then `cli.run` does the rest; heavy imports come only then."""

from __future__ import annotations

import io
import logging
import os
import platform
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from importlib.metadata import version
from pathlib import Path

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig

from runner import __version__
from runner.config import explain, schema
from runner.errors import UserError, first_line
from runner.security import secrets, streams, targets, trust
from runner.system import started

# In a wheel the folder `conf` lies inside the package, in a checkout beside it.
CONF = next(path for path in (Path(__file__).parents[1] / "conf", Path(__file__).parents[2] / "conf") if path.is_dir())
# Where Hydra finds the plugins of a checkout; a wheel installs them beside the package.
PLUGINS = Path(__file__).parents[1] / "_hydra"
# Options with which Hydra only prints information and runs nothing.
ANSWERS = {"--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc"}
full_error = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
exit_code = 0


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def task(cfg: DictConfig) -> None:
    """Run one job."""
    answer(run, cfg)


def run(cfg: DictConfig) -> int:
    """Run one job and return its exit code."""
    from rich.console import Console

    # This imports NumPy, which `--cfg job` does not need.
    from runner.cli import job

    return job.SIGNALS.get(job.run(cfg, Console()).stopped_by or "", 0)


def answer(work: Callable[[DictConfig], int], cfg: DictConfig) -> None:
    """Do a command's work and save its exit code; an error is printed as one line, and its exit code is 1."""
    global exit_code
    try:
        exit_code = work(cfg)
    except Exception as error:
        if full_error:
            raise
        complain(error)
        exit_code = 1


def complain(error: BaseException) -> None:
    """Print an error as one line."""
    secrets.tell(f"error: {first_line(error)}", sys.stderr)


def main(task: Callable[[], None] = task) -> int:
    """Return the exit code: 0 for every ending, 1 for an error, 128 plus the signal's number for an interruption."""
    global exit_code
    exit_code = 0
    if "--version" in sys.argv[1:]:
        secrets.tell(versions())
        return 0
    schema.register()
    secrets.learn_words(sys.argv[1:])
    if PLUGINS.is_dir() and str(PLUGINS) not in sys.path:
        sys.path.append(str(PLUGINS))
    # With this variable Hydra raises an error that it would otherwise print over several lines.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    mask = os.umask(0o077)
    try:
        with started.here(), targets.named(sys.argv), trust.command(sys.argv[1:]), asked(sys.argv):
            task()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception as error:
        if full_error:
            raise
        complain(UserError(explain.explain(error)))
        return 1
    finally:
        os.umask(mask)
        if not full_error:
            del os.environ["HYDRA_FULL_ERROR"]
    return exit_code


def versions() -> str:
    """Return the versions of this package and of its main dependencies, without importing them."""
    rest = ", ".join(f"{name} {version(name)}" for name in ("tensorflow", "keras", "mlflow", "hydra-core"))
    return f"runner {__version__} ({rest}, Python {platform.python_version()})"


@contextmanager
def asked(words: list[str]) -> Iterator[None]:
    """Escape control characters in Hydra's information output; Hydra's help ignores the words of a sweep."""
    flags = {word.partition("=")[0] for word in words[1:]}
    if not flags & ANSWERS:
        yield
        return
    if flags & {"--help", "-h"}:
        # Hydra composes its help for one run.
        words[:] = [word for word in words if word not in ("-m", "--multirun") and not is_sweep(word)]
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            yield
    finally:
        sys.stdout.write(secrets.escaped(printed.getvalue()))


def is_sweep(word: str) -> bool:
    """Return whether a word of the command gives a key several values."""
    try:
        return OverridesParser.create().parse_override(word).is_sweep_override()
    except (OverrideParseException, HydraException):
        return False


def command(main: Callable[[], int] = main) -> None:
    """Run the command line and end the process."""
    # An installed script finds modules in the current folder, as `python -m` does.
    if not sys.flags.safe_path and "" not in sys.path:
        with suppress(FileNotFoundError):
            sys.path += {os.getcwd()} - {*sys.path}
    # A log that cannot be written, because a disk is full, must not print a traceback.
    logging.raiseExceptions = False
    streams.command(main)
