"""Jobs composed as Hydra composes them, but a job that changes values alone from a copy of one that was composed before."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from runner.config import parameters
from runner.security import expansion, secrets

# Jobs that are kept, each of which takes some 50 KB.
KEPT = 2000


@dataclass(frozen=True, eq=False)
class Base:
    """What jobs of the same choices share: what these compose, the task's part and Hydra's own."""

    cfg: DictConfig
    hydra: DictConfig

    @cached_property
    def plain(self) -> dict[str, Any]:
        """The task's part as plain data; empty where it cannot be resolved by itself."""
        try:
            return parameters.resolved(self.cfg)
        except OmegaConfBaseException:
            return {}

    @cached_property
    def referred(self) -> str:
        """What the values of the task's part refer to."""
        return " ".join(re.findall(r"\$\{.*", OmegaConf.to_yaml(self.cfg)))

    def with_numbers(self, values: Sequence[Override]) -> dict[str, Any] | None:
        """Return this with these values as plain data, without OmegaConf, which takes milliseconds a job.

        None where it may be otherwise: a key is new, or no number of the same type before, or another value may refer to it.
        """
        plain: dict[str, Any] = dict(self.plain)
        for each in values:
            *path, last = each.key_or_group.split(".")
            node, value = plain, each.value()
            for part in path:
                if not isinstance(node.get(part), dict):
                    return None
                node[part] = node = dict(node[part])
            same = type(value) in (int, float) and type(node.get(last)) is type(value)
            if each.type is not OverrideType.CHANGE or not same or any(part in self.referred for part in (*path, last)):
                return None
            node[last] = value
        return plain

    def with_values(self, values: Sequence[Override]) -> DictConfig:
        """Return a copy of the task's part with these values; raises what Hydra raises where they cannot be set."""
        cfg = copy.deepcopy(self.cfg)
        ConfigLoaderImpl._apply_overrides_to_config([*values], cfg)
        return cfg


@dataclass(frozen=True, eq=False)
class Job:
    """A job of a sweep: what its task will get, its own overrides, and Hydra's node, which jobs of the same choices share."""

    overrides: tuple[str, ...]
    base: Base
    values: tuple[Override, ...]  # in which it differs from what its choices compose

    @cached_property
    def cfg(self) -> DictConfig:
        """The configuration; a job that is reused needs none."""
        return self.base.with_values(self.values)

    @property
    def hydra(self) -> DictConfig:
        """Hydra's node and the task's part without the values."""
        return self.base.hydra

    @cached_property
    def plain(self) -> dict[str, Any]:
        """The configuration as plain data; raises what OmegaConf raises where it cannot be resolved."""
        return self.base.with_numbers(self.values) or parameters.resolved(self.cfg)

    @cached_property
    def identity(self) -> str:
        """The digest of all that the result depends on, or nothing where the configuration is wrong, as its run will tell."""
        try:
            return parameters.digest(self.plain)
        except Exception:
            return ""


class Composer:
    """The jobs of one sweep: `composer(overrides)` tells what Hydra's `load_sweep_config` would, some thirty times as fast.

    Hydra applies values to what the choices of groups compose, one after another; so a copy of the latter serves all jobs that
    make the same choices.
    """

    def __init__(self, loader: Any, master: DictConfig) -> None:
        self.loader, self.master = loader, master
        self.parse = lru_cache(maxsize=10_000)(OverridesParser.create(config_loader=loader).parse_override)
        self.is_group = lru_cache(maxsize=None)(loader.repository.group_exists)
        self.bases: dict[tuple[str, ...], Base] = {}
        self.kept = lru_cache(maxsize=KEPT)(self.compose)

    def __call__(self, overrides: Sequence[str]) -> Job:
        """Return a job, one of the last by these overrides as it is; raises what Hydra raises where it cannot be composed."""
        return self.kept(tuple(overrides))

    def compose(self, overrides: tuple[str, ...]) -> Job:
        """Compose a job."""
        parsed = [self.parse(each) for each in overrides]
        task = tuple(str(each.input_line) for each in parsed if not each.is_hydra_override())
        values = tuple(each for each in parsed if self.is_value(each))
        base = self.base(tuple(str(each.input_line) for each in parsed if not self.is_value(each)))
        for each in values:
            secrets.learn_given(each)
        job = Job(task, base, values)
        # What cannot be set is told before any job runs; a number in the place of a number can be.
        if base.with_numbers(values) is None:
            _ = job.cfg
        if any("${" in str(each.input_line) for each in values):
            expansion.expandable(job.cfg)
        return job

    def base(self, choices: tuple[str, ...]) -> Base:
        """Return what these choices compose."""
        if choices not in self.bases:
            whole = self.loader.load_sweep_config(self.master, list(choices))
            task = copy.deepcopy(whole)
            with open_dict(task):
                del task["hydra"]
            OmegaConf.copy_cache(from_config=self.master, to_config=task)
            self.bases[choices] = Base(task, whole)
        return self.bases[choices]

    def is_value(self, override: Override) -> bool:
        """Tell whether an override sets a value of the task's: it picks no file of a group and is none of Hydra's own."""
        own = override.is_hydra_override() or override.package is not None
        return not own and not self.is_group(override.key_or_group)
