"""One job of Hydra: from a composed configuration to its result, as plain data that any process can pass on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from runner.config import dump, labels, nodes, parameters, validation
from runner.security import secrets
from runner.system import quiet, startup
from runner.tracking.contract import About, OneByOne, Tracker

# The tag of a sweep's job that names the keys whose values differ among its jobs.
SWEPT = "swept"
SIGNALS = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 138, "SIGUSR2": 140}


def run(cfg: DictConfig, console: Any, marks: Mapping[str, str] | None = None) -> Any:
    """Check a composed configuration, then import heavy packages, run it and return its Result; `marks` are further tags."""
    hydra_cfg = HydraConfig.get()
    chosen = checked(cfg, hydra_cfg)
    made = prepare(cfg.tracking, draws=parameters.draws(cfg, marks or {}))
    with quiet.tensorflow(), startup.without_optional_imports():
        from runner.cli import run as on_the_command_line

    overrides, folder = hydra_cfg.overrides.task, Path(hydra_cfg.runtime.output_dir)
    said = about(parameters.resolved(cfg), chosen, overrides, folder, marks or {})
    return on_the_command_line.run(cfg, made, said, chosen, console)


def checked(cfg: DictConfig, hydra_cfg: Any) -> dict[str, str]:
    """Return each group's label; raises UserError for errors that the configuration alone shows."""
    sources = tuple(Path(source.path) for source in hydra_cfg.runtime.config_sources if source.schema == "file")
    chosen = labels.choices(hydra_cfg.runtime.choices, cfg)
    validation.check(cfg, chosen, sources)
    return labels.labels(chosen, cfg, sources)


def about(
    plain: Mapping[str, Any], chosen: Mapping[str, str], overrides: Sequence[str], folder: Path, marks: Mapping[str, str]
) -> About:
    """Return the description of a run (`About`) from its resolved configuration, without its secrets."""
    identity = parameters.digest(plain)
    secrets.learn(plain)
    plain, overrides = secrets.hidden(plain), [secrets.override(each) for each in overrides]
    tags = parameters.tags(chosen, overrides) | {"identity": identity} | dict(marks)
    called, params = name(plain, chosen, overrides, marks), parameters.params(plain)
    return About(folder, called, params, tags, dump.text(plain), bool(plain["resume"]))


# Groups whose choices are in a run's name, and the maximum length of the name.
NAMED, NAME_LENGTH = ("loss", "optimizer", "strategy", "execution"), 250


def name(plain: Mapping[str, Any], chosen: Mapping[str, str], overrides: Sequence[str], marks: Mapping[str, str]) -> str:
    """Return a run's name: its choices, then the keys that differ among its sweep's jobs, else its learning rate and seed."""
    typed: dict[str, str] = {key: value for key, _, value in (each.partition("=") for each in overrides)}
    told = {key: typed[key] for key in marks.get(SWEPT, "").split() if key in typed and key not in NAMED}
    rate = plain["optimizer"].get("learning_rate")
    if not told:
        told = ({"learning_rate": str(rate)} if isinstance(rate, int | float) else {}) | {"seed": str(plain["seed"])}
    # The last part of a key is enough, unless it is an index or another key ends in it.
    last = Counter(key.rpartition(".")[2] for key in told)
    words = []
    for key, value in told.items():
        short = key.lstrip("+").rpartition(".")[2]
        words.append(f"{short if last[short] == 1 and not short.isdigit() else key.lstrip('+')}={shortened(value)}")
    return " ".join([*(chosen[group] for group in NAMED), *words])[:NAME_LENGTH]


def shortened(value: str) -> str:
    """Return a number with six digits, enough to distinguish a sweep's values; an integer or any other value unchanged."""
    try:
        return f"{float(value):.6g}" if not value.lstrip("-").isdigit() else value
    except ValueError:
        return value


def tracker(node: Any) -> Tracker:
    """Return the tracker that the tracking group names; a plain function becomes a tracker that records runs one by one."""
    if hasattr(nodes.function_of("tracking", node), "run"):
        return nodes.function("tracking", node)()
    return OneByOne(nodes.function("tracking", node, "about"))


def prepare(tracking: DictConfig, *, draws: bool = False) -> Tracker:
    """Return the tracker that the tracking group names, and start its slow preparations; raises UserError."""
    made = tracker(tracking)
    made.prepare(draws=draws)
    return made
