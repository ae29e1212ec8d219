"""Plain data of a resolved configuration: its digest, the recorded parameters, and a run's tags."""

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

# Keys of recording, saving and resuming, on which a run's result does not depend.
ASIDE = ("tracking", "report", "sweep", "checkpoint", "resume")


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """Return a job's configuration as plain data, with all interpolations resolved."""
    plain = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def digest(plain: Mapping[str, Any]) -> str:
    """Return the config digest, of all that a run's result depends on: not its recording, its saving or its sweep.

    It covers the release (major.minor), the configuration and, if there are any, the source files of the user's own functions.
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
    """Return the experiment's parameters in a resolved configuration, flattened; config.yaml holds the other keys too."""
    return flat({key: value for key, value in plain.items() if key not in ASIDE})


def is_param(key: str) -> bool:
    """Return whether a flattened key is a parameter of the experiment; older runs recorded the other keys too."""
    return key.partition(".")[0] not in ASIDE


def tags(chosen: Mapping[str, str], overrides: Sequence[str]) -> dict[str, str]:
    """Return a run's tags: the choices, the overrides, the commit, the user and the versions."""
    return {**chosen, **provenance(), "overrides": " ".join(overrides)}


@cache
def provenance() -> dict[str, str]:
    """Return the tags that all runs of this process share: the versions, the user and the commit."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    found = {f"version.{name}": version(name) for name in ("tensorflow", "keras")} | {"version.runner": __version__}
    found |= {"mlflow.source.name": "python -m runner", "mlflow.user": getpass.getuser()}
    return found | ({"mlflow.source.git.commit": commit} if commit else {})


def draws(cfg: Any, marks: Mapping[str, str]) -> bool:
    """Return whether a run gets a report: a sweep's job if `report.sweep` is true, another run if `report.sweep` is set."""
    asked = cfg.report.get("sweep")
    return bool(asked) if "job" in marks else asked is not None
