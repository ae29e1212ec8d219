"""The file that each group picked, by name, or the part that runs in its place."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from runner.security.names import current


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


def choices(chosen: Mapping[str, Any], cfg: DictConfig) -> dict[str, str]:
    """Return which file each group picked, without Hydra's own groups; several of one group are joined by commas.

    Hydra does not tell what a list picked, as in `stopping=[gradient_norm,plateau]`, where each file brings a key of its name.
    """
    rules = [name for name in cfg.stopping if name != "time_limit"] or ["limit"]
    picked = {group: name for group, name in chosen.items() if not group.startswith("hydra/") and name is not None}
    return {"stopping": ",".join(rules)} | picked
