"""The typed top of the configuration, and what Hydra's composition leaves unchecked, told in one line each."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from functools import cache, wraps
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import MISSING, DictConfig, IntegerNode, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException, ValidationError

from runner import __version__
from runner.config import bounds, grammar, sources
from runner.errors import Misfit, UserError, first_line, nearest
from runner.security import expansion, hydra_node, origins, secrets, targets, yaml_limits
from runner.security.names import current, first

# What else may stand where a value of this kind stands.
WIDER = {"a number": ("a whole number",)}
# As many as floats can count one by one, which time and rows are reckoned in.
ITERATIONS = 2**53
# Where Hydra finds the plugins of installed distributions, and ours.
PLUGINS = Path(__file__).parents[1] / "_plugins"
# Keys of how a run is recorded, saved and begun, which its result does not depend on.
ASIDE = ("tracking", "report", "sweep", "checkpoint", "resume")
Dtype = Enum("Dtype", ["float32", "float64"])


@dataclass
class Sweep:
    """What holds for a sweep as a whole; the values are in conf/config.yaml."""

    reuse: bool = MISSING
    fail_fast: bool = MISSING
    plan: bool = MISSING
    pack: int | None = MISSING
    zip: list[list[str]] = MISSING


@dataclass
class Checkpoint:
    """When a run is saved, to be continued; the value is in conf/config.yaml."""

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
    """Tell Hydra the schema, our own grids, and the resolver that names folders after the process as well as the time."""
    # Before Hydra looks for plugins; Python finds no other folder of that name then.
    if str(PLUGINS) not in sys.path:
        sys.path.insert(0, str(PLUGINS))
    ConfigStore.instance().store(name="schema", node=Config)
    # Our launchers bear the names of the published ones, and are to be checked against those: Hydra warns each time.
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
    """Have a typed key that is a whole number take a float that is one: max_iterations=1e5."""
    original = IntegerNode._validate_and_convert_impl
    if hasattr(original, "__wrapped__"):
        return

    @wraps(original)
    def converted(self: IntegerNode, value: Any) -> int:
        return original(self, int(value) if isinstance(value, float) and value.is_integer() else value)

    setattr(IntegerNode, "_validate_and_convert_impl", converted)


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """Return a job's configuration as plain data, with nothing left to be interpolated."""
    plain = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def identity(plain: Mapping[str, Any]) -> str:
    """Return a digest of all that a run's result depends on: not how it is recorded or saved, nor its sweep.

    The source of the user's own functions belongs to it; without such functions it is the configuration's alone.
    """
    decisive = {key: value for key, value in plain.items() if key not in ASIDE}
    release = ".".join(__version__.split(".")[:2])
    own = sources.of(decisive)
    named = first(decisive)
    said = [release, named, own] if own else [release, named]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:32]


def draws(cfg: Any, marks: Mapping[str, str]) -> bool:
    """Tell whether a run gets a report: not where it has none, nor a job of a sweep that does not ask for it."""
    asked = cfg.report.get("sweep")
    return bool(asked) if "job" in marks else asked is not None


def check(cfg: DictConfig, choices: Mapping[str, Any], sources: tuple[Path, ...]) -> None:
    """Raise one UserError for all that the configuration alone shows to be wrong.

    A group's file is its schema: what overrides one of its values has that value's type.
    """
    known = [field.name for field in fields(Config)]
    given = OmegaConf.to_container(cfg)
    assert isinstance(given, dict)
    faults = [f"{key} is no key of the configuration; {nearest(key, known)}" for key in given if key not in known]
    faults += [*missing("", given), *ranges(given), *huge("", given)]
    plain: dict[str, Any] = {}
    for group, value in given.items():
        if isinstance(value, dict):
            faults += mistyped(str(group), declared(sources, str(group), choices.get(str(group), "")), value)
        if targets.interpolated(value):
            value = OmegaConf.to_container(cfg[group], resolve=True) if OmegaConf.is_config(cfg[group]) else cfg[group]
        if isinstance(value, dict):
            plain[str(group)] = value
        secrets.learn({group: value})
        faults += targets.faults(str(group), value)
    faults += [*bounds.faults(plain, cfg.dtype.name), *bounds.names(plain.get("tracking", {}))]
    unlike = list(contradictions(given, choices, sources))
    if faults or unlike:
        # Choices that are each right make an empty cell of a sweep, and not a failed job.
        raise (UserError if faults else Misfit)("; ".join([*faults, *unlike]))


def contradictions(given: Mapping[Any, Any], choices: Mapping[str, Any], sources: tuple[Path, ...]) -> Iterator[str]:
    """Yield the choices of a group that a plain value has replaced, as a number does a schedule.

    A stopping rule whose file gives a plain value itself, as the time limit's does, may have another.
    """
    rules = [name for name in str(choices.get("stopping", "limit")).split(",") if name != "limit"]
    several = [(f"stopping/{name}", name) for name in rules if isinstance(declared(sources, "stopping", name).get(name), dict)]
    for group, name in [
        *((group, name) for group, name in choices.items() if group not in ("stopping", "experiment")),
        *several,
    ]:
        value: Any = given
        for key in group.split("/"):
            value = value.get(key, {}) if isinstance(value, dict) else {}
        if not isinstance(value, dict):
            chosen = f"{group}={name}" if group != f"stopping/{name}" else f"stopping={name}"
            nested = "/" in group and group != f"stopping/{name}"
            remedy = f"leave one of them out, or set {group}=null" if nested else "leave one of them out"
            yield f"{chosen} and {group.replace('/', '.')}={value!r} contradict each other; {remedy}"


def labels(choices: Mapping[str, str], cfg: DictConfig, sources: tuple[Path, ...]) -> dict[str, str]:
    """Return what each group is called: the file that it picked, or, where another `_target_` runs than that file's, that."""
    found = {}
    for group, names in choices.items():
        found[group] = names
        if group == "stopping":
            nodes = {name: (f"stopping/{name}", cfg.stopping.get(name)) for name in names.split(",")}
            found[group] = ",".join(label(name, of_rule(sources, name), node) for name, (_, node) in nodes.items())
        elif OmegaConf.is_dict(node := OmegaConf.select(cfg, group.replace("/", "."))):
            found[group] = label(names, target_of(sources, group, names), node)
    return found


def label(name: str, declared: str | None, node: Any) -> str:
    """Return a choice's name, or the `_target_` of its node where that is not the declared one."""
    runs = node.get("_target_") if OmegaConf.is_dict(node) else None
    return name if declared is None or runs is None or current(runs) == current(declared) else str(current(runs))


def of_rule(sources: tuple[Path, ...], name: str) -> str | None:
    """Return the `_target_` of a stopping rule's file, which has a key of its name."""
    rule = declared(sources, "stopping", name).get(name)
    return rule.get("_target_") if isinstance(rule, dict) else None


@cache
def target_of(sources: tuple[Path, ...], group: str, name: str) -> str | None:
    """Return the `_target_` that a group's file names, or a file of the same group in its defaults; None where neither does."""
    file = declared(sources, group, name)
    if "_target_" in file:
        return None if "${" in str(file["_target_"]) else str(file["_target_"])
    others = [each for each in file.get("defaults", []) if isinstance(each, str) and each not in ("_self_", name)]
    return next((found for each in reversed(others) if (found := target_of(sources, group, each))), None)


@cache
def declared(sources: tuple[Path, ...], group: str, names: str) -> Any:
    """Return what the files that a group picked declare, together; read once for all jobs of a sweep."""
    found = OmegaConf.create({})
    for name in names.split(","):
        file = next((path for source in sources if (path := source / group / f"{name}.yaml").is_file()), None)
        found = OmegaConf.merge(found, OmegaConf.load(file) if file else {})
    return OmegaConf.to_container(found)


def missing(path: str, given: Any) -> Iterator[str]:
    """Yield the values that were left open."""
    if isinstance(given, dict):
        for key, value in given.items():
            yield from missing(f"{path}.{key}" if path else str(key), value)
    elif given == "???":
        yield f"{path} must be given; set it with {path}=…"


def ranges(given: Mapping[Any, Any]) -> Iterator[str]:
    """Yield the top-level numbers that no run can use."""
    limit, seed = given["max_iterations"], given["seed"]
    if isinstance(limit, int) and not 1 <= limit <= ITERATIONS:
        yield f"max_iterations must be 1 or more, and {ITERATIONS} or less, got {limit}; set it with max_iterations=100"
    if isinstance(seed, int) and not 0 <= seed < 2**32:
        yield f"seed must be in 0 … {2**32 - 1}, got {seed}; set it with seed=0"
    if isinstance(seconds := given["checkpoint"]["every_seconds"], int | float) and not seconds >= 0:
        yield f"checkpoint.every_seconds must be 0 or more, got {seconds}; set it with checkpoint.every_seconds=60"


def huge(path: str, given: Any) -> Iterator[str]:
    """Yield the whole numbers of groups that no 64 bits hold."""
    if isinstance(given, dict):
        for key, value in given.items():
            yield from huge(f"{path}.{key}" if path else str(key), value)
    elif isinstance(given, list):
        for i, value in enumerate(given):
            yield from huge(f"{path}.{i}", value)
    elif isinstance(given, int) and "." in path and not -(2**63) <= given < 2**63:
        yield f"{path} must be in -2^63 … 2^63 - 1, got {given}"


def mistyped(path: str, declared: Any, given: Any) -> Iterator[str]:
    """Yield the values whose type is not that of the value they override; a mapping may stand for a number (a schedule)."""
    if isinstance(declared, dict) and isinstance(given, dict):
        for key in declared.keys() & given.keys():
            yield from mistyped(f"{path}.{key}", declared[key], given[key])
    elif (word := kind(declared)) and not isinstance(given, dict) and kind(given) not in (None, word, *WIDER.get(word, ())):
        yield f"{path} must be {word}, got {given!r}; set it with {path}={declared}"


def kind(value: Any) -> str | None:
    """Return the word for a value's type, where its type can be told; what is interpolated or left open cannot."""
    if isinstance(value, str) and ("${" in value or value == "???"):
        return None
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a word", list: "a list"}
    return words.get(type(value))


def flat(plain: Mapping[str, Any]) -> dict[str, str]:
    """Return a resolved configuration as `{"optimizer.learning_rate": "0.1", …}`."""

    def walk(path: str, value: Any) -> Iterator[tuple[str, str]]:
        if isinstance(value, dict) and value:
            for key, each in value.items():
                yield from walk(f"{path}.{key}" if path else str(key), each)
        else:
            yield path, str(value)

    return dict(walk("", plain))


def params(plain: Mapping[str, Any]) -> dict[str, str]:
    """Return what are parameters of the experiment in a resolved configuration; config.yaml holds the rest too."""
    return flat({key: value for key, value in plain.items() if key not in ASIDE})


def is_param(key: str) -> bool:
    """Tell whether a flattened key is a parameter of the experiment; those of older runs hold the others too."""
    return key.partition(".")[0] not in ASIDE


def choices(chosen: Mapping[str, Any], cfg: DictConfig) -> dict[str, str]:
    """Return which file each group picked, without Hydra's own groups; several of one group are joined by commas.

    Hydra does not tell what a list picked, as in `stopping=[gradient_norm,plateau]`, where each file brings a key of its name.
    """
    rules = [name for name in cfg.stopping if name != "time_limit"] or ["limit"]
    picked = {group: name for group, name in chosen.items() if not group.startswith("hydra/") and name is not None}
    return {"stopping": ",".join(rules)} | picked


def tags(chosen: Mapping[str, str], overrides: Sequence[str]) -> dict[str, str]:
    """Return what is noted of a run besides its parameters: the choices, the overrides, the commit and the versions."""
    return {**chosen, **provenance(), "overrides": " ".join(overrides)}


@cache
def provenance() -> dict[str, str]:
    """Return the tags that all runs of this process share: who ran which versions."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    found = {f"version.{name}": version(name) for name in ("tensorflow", "keras")} | {"version.runner": __version__}
    found |= {"mlflow.source.name": "python -m runner", "mlflow.user": getpass.getuser()}
    return found | ({"mlflow.source.git.commit": commit} if commit else {})


def explain(error: Exception) -> str:
    """Return in one line what is wrong with a configuration that Hydra could not compose."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(error, MissingConfigException):
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        # Of a list Hydra only says where it has looked.
        folders = re.findall("path=file://(.*)", str(error))
        options = error.options or [file.stem for each in folders for file in Path(each, group).glob("*.yaml")]
        return f"{group} must be one of its files, got {name!r}; {nearest(name, options)}"
    if isinstance(error, OverrideParseException):
        shown = secrets.override(str(error.override))
        why = f" ({one_line(error)})" if shown == error.override else ""
        return f"the override {shown!r} cannot be read; write key=value{why}"
    if isinstance(cause, ConfigKeyError) or type(cause).__name__ == "ConfigAttributeError":
        known = [key for key in cause.parent_node or () if key != "hydra"]
        key = cause.full_key or cause.key
        return f"{key} is no key of the configuration; {nearest(str(cause.key), known)}"
    if isinstance(error, ModuleNotFoundError):
        return first_line(error)
    if isinstance(cause, ValidationError):
        return f"{cause.full_key}: {one_line(cause)}"
    return one_line(error)


def one_line(error: BaseException) -> str:
    """Return an exception's text, or its cause's, without OmegaConf's trailer, on one line."""
    key = re.search(r"full_key: (\S+)", str(error))
    text = " ".join(re.sub(r"\n\s*(full_key|object_type|reference_type)[:=].*", "", str(error)).split())
    text = f"{key[1]}: {text}" if key and key[1] not in text else text
    return text or (one_line(error.__cause__) if error.__cause__ else type(error).__name__)
