"""Labels of each group's choice: the name of the picked file, or the `_target_` that runs in its place."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from runner.security.names import current


def labels(choices: Mapping[str, str], cfg: DictConfig, sources: tuple[Path, ...]) -> dict[str, str]:
    """Return each group's label: the name of its picked file, or its `_target_` if that differs from the file's."""
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
    """Return a choice's name, or its node's `_target_` if that is not the declared one."""
    runs = node.get("_target_") if OmegaConf.is_dict(node) else None
    return name if declared is None or runs is None or current(runs) == current(declared) else str(current(runs))


def of_rule(sources: tuple[Path, ...], name: str) -> str | None:
    """Return the `_target_` in a stopping rule's file, which has a key with the rule's name; None if it has none."""
    rule = declared(sources, "stopping", name).get(name)
    return rule.get("_target_") if isinstance(rule, dict) else None


@cache
def target_of(sources: tuple[Path, ...], group: str, name: str) -> str | None:
    """Return the `_target_` in a group's file, or in a file of the same group in its defaults; None if neither has one."""
    file = declared(sources, group, name)
    if "_target_" in file:
        return None if "${" in str(file["_target_"]) else str(file["_target_"])
    others = [each for each in file.get("defaults", []) if isinstance(each, str) and each not in ("_self_", name)]
    return next((found for each in reversed(others) if (found := target_of(sources, group, each))), None)


@cache
def declared(sources: tuple[Path, ...], group: str, names: str) -> Any:
    """Return the merged content of the files that a group picked; it is read once for all jobs of a sweep."""
    found = OmegaConf.create({})
    for name in names.split(","):
        file = next((path for source in sources if (path := source / group / f"{name}.yaml").is_file()), None)
        found = OmegaConf.merge(found, OmegaConf.load(file) if file else {})
    return OmegaConf.to_container(found)


def choices(chosen: Mapping[str, Any], cfg: DictConfig) -> dict[str, str]:
    """Return the file that each group picked, without Hydra's own groups; several files of one group are joined by commas.

    For a list, as in `stopping=[gradient_norm,plateau]`, Hydra does not report the files; each file adds a key with its name.
    """
    rules = [name for name in cfg.stopping if name != "time_limit"] or ["limit"]
    picked = {group: name for group, name in chosen.items() if not group.startswith("hydra/") and name is not None}
    return {"stopping": ",".join(rules)} | picked
