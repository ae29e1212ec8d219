"""A resolved configuration as plain data: its digest, the parameters that are recorded, and a run's tags."""

from __future__ import annotations

import getpass
import hashlib
import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any

from omegaconf import DictConfig, OmegaConf

from runner import __version__
from runner.config import sources
from runner.security.names import first

# Keys of how a run is recorded, saved and begun, which its result does not depend on.
ASIDE = ("tracking", "report", "sweep", "checkpoint", "resume")


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """Return a job's configuration as plain data, with nothing left to be interpolated."""
    plain = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def digest(plain: Mapping[str, Any]) -> str:
    """Return a digest of all that a run's result depends on: not how it is recorded or saved, nor its sweep.

    The source of the user's own functions belongs to it; without such functions it is the configuration's alone.
    """
    decisive = {key: value for key, value in plain.items() if key not in ASIDE}
    release = ".".join(__version__.split(".")[:2])
    own = sources.of(decisive)
    named = first(decisive)
    said = [release, named, own] if own else [release, named]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:32]


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


def draws(cfg: Any, marks: Mapping[str, str]) -> bool:
    """Tell whether a run gets a report: not where it has none, nor a job of a sweep that does not ask for it."""
    asked = cfg.report.get("sweep")
    return bool(asked) if "job" in marks else asked is not None
