"""`python -m runner`: Hydra composes the configuration, `experiment.run` does the rest; nothing heavy is imported before."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from pkgutil import resolve_name

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from runner import config, quick, quiet
from runner.errors import UserError, first_line

# In a wheel the configuration lies inside the package, in a checkout beside it.
CONF = next(path for path in (Path(__file__).parent / "conf", Path(__file__).parents[1] / "conf") if path.is_dir())
SIGNALS = {"SIGINT": 130, "SIGTERM": 143}
full_error = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
exit_code = 0


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def task(cfg: DictConfig) -> float | None:
    """Run one job; returns its best loss, which is what a sweeper minimises."""
    global exit_code
    try:
        result = run(cfg)
    except Exception as error:
        if full_error:
            raise
        complain(error)
        exit_code = 1
        return None
    if result.stopped_by in SIGNALS:
        sys.exit(SIGNALS[result.stopped_by])
    return float(result.best.loss[0])


def run(cfg: DictConfig):
    """Check a composed configuration, then import what is heavy and run it."""
    hydra_cfg = HydraConfig.get()
    runtime = hydra_cfg.runtime
    sources = [Path(source.path) for source in runtime.config_sources if source.schema == "file"]
    choices = config.choices(runtime.choices, cfg)
    config.check(cfg, choices, sources)

    prepare(cfg.tracking)
    with quiet.tensorflow(), quick.without_optional_imports():
        from runner import experiment
    from rich.console import Console

    from runner.tracking import About

    about = About(Path(runtime.output_dir), config.flat(cfg), config.tags(choices, hydra_cfg.overrides.task), config.text(cfg))
    return experiment.run(cfg, about, choices, Console())


def prepare(tracking: DictConfig) -> None:
    """Let a recorder that takes long to open begin before TensorFlow is imported."""
    # What is wrong with it is told where it is built.
    with suppress(Exception):
        resolve_name(tracking._target_).prepare(uri=tracking.uri)


def complain(error: BaseException) -> None:
    """Print an error as the one line that a user sees."""
    print(f"error: {first_line(error)}", file=sys.stderr)


def main() -> int:
    """Return the exit code: 0 for every ending, 1 for an error, 128 and the signal's number for an interruption."""
    global exit_code
    exit_code = 0
    config.register()
    # Hydra then raises what it would else print over several lines.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        task()
    except KeyboardInterrupt:
        return SIGNALS["SIGINT"]
    except Exception as error:
        if full_error:
            raise
        complain(UserError(config.explain(error)))
        return 1
    finally:
        if not full_error:
            del os.environ["HYDRA_FULL_ERROR"]
    return exit_code


def command() -> None:
    """Run the command line and end the process."""
    try:
        code = main()
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    quick.leave(code)


if __name__ == "__main__":
    command()
