"""The schema of the configuration's top level, which is registered with Hydra before it composes a configuration."""

from __future__ import annotations

import os
import sys
import warnings
from dataclasses import dataclass
from enum import Enum
from functools import wraps
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, IntegerNode, OmegaConf

from runner.config import grammar
from runner.security import expansion, hydra_node, origins, secrets, yaml_limits

# The folder through which Hydra finds this package's plugins and those of installed distributions.
PLUGINS = Path(__file__).parents[1] / "_plugins"
Dtype = Enum("Dtype", ["float32", "float64"])


@dataclass
class Sweep:
    """The settings of a sweep as a whole; the values are in conf/config.yaml."""

    reuse: bool = MISSING
    fail_fast: bool = MISSING
    plan: bool = MISSING
    pack: int | None = MISSING
    zip: list[list[str]] = MISSING


@dataclass
class Checkpoint:
    """How often a run saves a checkpoint, from which it can be resumed; the value is in conf/config.yaml."""

    every_seconds: float | None = MISSING


@dataclass
class Config:
    """The keys that a user may set; the values are in conf/config.yaml, and a group's keys in its own files."""

    loss: Any = MISSING
    instance: Any = MISSING
    noise: Any = MISSING
    guess: Any = MISSING
    optimizer: Any = MISSING
    strategy: Any = MISSING
    execution: Any = MISSING
    stopping: Any = MISSING
    tracking: Any = MISSING
    report: Any = MISSING
    sweep: Sweep = MISSING
    checkpoint: Checkpoint = MISSING
    resume: bool = MISSING
    max_iterations: int = MISSING
    seed: int = MISSING
    deterministic: bool = MISSING
    dtype: Dtype = MISSING


def register() -> None:
    """Register the schema, the grids, the guards, and the resolver `pid`, which puts the process id into folder names."""
    # This must precede Hydra's search for plugins: Python then finds no other folder with that name.
    if str(PLUGINS) not in sys.path:
        sys.path.insert(0, str(PLUGINS))
    ConfigStore.instance().store(name="schema", node=Config)
    # Our launchers have the names of the published ones and are validated against their schemas: Hydra warns each time.
    warnings.filterwarnings("ignore", r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema", UserWarning)
    grammar.extend()
    hydra_node.guard()
    yaml_limits.guard()
    expansion.guard()
    secrets.guard()
    origins.guard()
    take_whole_floats()
    if not OmegaConf.has_resolver("pid"):
        # Cached, so that all jobs of a sweep share its folder, whichever process they run in.
        OmegaConf.register_new_resolver("pid", os.getpid, use_cache=True)


def take_whole_floats() -> None:
    """Let an integer key accept a float with an integer value: max_iterations=1e5."""
    original = IntegerNode._validate_and_convert_impl
    if hasattr(original, "__wrapped__"):
        return

    @wraps(original)
    def converted(self: IntegerNode, value: Any) -> int:
        return original(self, int(value) if isinstance(value, float) and value.is_integer() else value)

    setattr(IntegerNode, "_validate_and_convert_impl", converted)
