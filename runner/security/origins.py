"""Check the places that a configuration's files give to Hydra: search paths, folders of jobs, and files of logs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from runner.errors import UserError
from runner.security import targets, trust
from runner.system import folders

NAME = re.compile(r"[\w.,=+@ -]{1,100}")


def guard() -> None:
    """Patch Hydra so that search paths are checked before a search, and each job's folder is claimed before it is made."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    if not hasattr(HydraConfig.set_config, "__wrapped__"):
        setattr(HydraConfig, "set_config", entering(HydraConfig.set_config))
    if not hasattr(ConfigLoaderImpl._process_config_searchpath, "__wrapped__"):
        setattr(ConfigLoaderImpl, "_process_config_searchpath", searching(ConfigLoaderImpl._process_config_searchpath))


def searching(process: Callable[..., None]) -> Callable[..., None]:
    """Return a function that accepts `hydra.searchpath` only from the command, and only modules that the command allows."""

    @wraps(process)
    def process_config_searchpath(loader: Any, name: str | None, overrides: Any, repository: Any) -> None:
        loaded = None if name is None else repository.load_config(config_path=name)
        of_file = loaded and OmegaConf.is_dict(loaded.config) and OmegaConf.select(loaded.config, "hydra.searchpath")
        of_words = [each for each in overrides if each.key_or_group == "hydra.searchpath"]
        if of_file or (of_words and not trust.given("hydra.searchpath")):
            raise UserError("hydra.searchpath comes from a file; name the folder yourself: --config-dir=DIR")
        for each in of_words:
            for path in each.value() or ():
                scheme, separator, rest = str(path).partition("://")
                if separator and scheme != "file" and (scheme != "pkg" or targets.let_in(rest.replace("/", ".")) is None):
                    raise UserError(
                        f"hydra.searchpath must name folders, got {str(path)!r}; a module's is imported, "
                        f"and has to be let in: {targets.OPTION} {rest or 'MODULE'}"
                    )
        process(loader, name, overrides, repository)

    return process_config_searchpath


def entering(set_config: Callable[..., None]) -> Callable[..., None]:
    """Return a `set_config` that claims the job's folder first; Hydra calls `set_config` before it makes the folder."""

    @wraps(set_config)
    def set_configuration(hydra_config: Any, cfg: Any) -> None:
        if not OmegaConf.is_missing(cfg.hydra.runtime, "output_dir"):
            enter(cfg.hydra)
        set_config(hydra_config, cfg)

    return set_configuration


def enter(node: Any) -> None:
    """Claim a job's folder; raises UserError if it holds files of others, or if a configuration file names another place."""
    place, alone = node.runtime.output_dir, OmegaConf.is_missing(node.job, "num")
    if alone:
        trust.folder("hydra.run.dir", place)
    else:
        trust.folder("hydra.sweep.dir", node.sweep.dir)
        if not trust.given("hydra.sweep.subdir") and not trust.below(place, node.sweep.dir):
            raise UserError(f"hydra.sweep.subdir must be below hydra.sweep.dir, got {place!r}; name it yourself to allow it")
    if found := list(misplaced(node, place)):
        raise UserError("; ".join(found))
    key = "hydra.run.dir" if alone else "hydra.sweep.dir"
    folders.claim(Path(place), f"set {key}=another folder, one that is new or empty")


def misplaced(node: Any, place: str) -> Iterator[str]:
    """Yield an error for each path that a job would write outside its folder."""
    if not NAME.fullmatch(node.job.name) or node.job.name in (".", ".."):
        yield f"hydra.job.name must be a file's name of letters, digits, spaces and .,=+@-, got {node.job.name!r}"
    below = node.output_subdir
    if below is not None and (Path(below).is_absolute() or ".." in Path(below).parts):
        yield f"hydra.output_subdir must be a folder of the job's own, got {below!r}; leave it out for .hydra"
    yield from logs("hydra.job_logging", node.job_logging, place)


def logs(path: str, logging: Any, place: str | None) -> Iterator[str]:
    """Yield an error for each log that a configuration file puts outside the job's folder `place`, or does not append to."""
    # A node that cannot be resolved yet is reported elsewhere.
    handlers: Any = logging.get("handlers") if hasattr(logging, "get") else None
    for name, handler in handlers.items() if hasattr(handlers, "items") else ():
        key = f"{path}.handlers.{name}.filename"
        file = handler.get("filename") if hasattr(handler, "get") else None
        if file is None or trust.given(key):
            continue
        # A link at the file's path is replaced, so only the file's folder is checked.
        within = place is not None and trust.below(Path(file).parent, place) and Path(file).suffix == ".log"
        if not within or handler.get("mode", "a") != "a":
            yield f"{key} must be a .log of the job's folder, which is added to, got {str(file)!r}; name it yourself: {key}=…"
