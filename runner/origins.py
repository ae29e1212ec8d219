"""Where a job's files go: its folder is claimed before Hydra writes the first of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from runner import folders


def guard() -> None:
    """Have each job's folder claimed as soon as Hydra has made it."""
    from hydra.core import utils

    if not hasattr(utils.configure_log, "claims"):
        utils.configure_log = claiming(utils.configure_log)


def claiming(configure: Callable[..., None]) -> Callable[..., None]:
    """Return what configures a job's log, which is the first of its files, after the job's folder has been claimed."""

    @wraps(configure)
    def configure_log(*args: Any, **keys: Any) -> None:
        if HydraConfig.initialized():
            enter(HydraConfig.get())
        configure(*args, **keys)

    setattr(configure_log, "claims", True)
    return configure_log


def enter(node: Any) -> None:
    """Claim a job's folder; raises UserError for one that holds files of others."""
    if not OmegaConf.is_missing(node.runtime, "output_dir"):
        key = "hydra.run.dir" if OmegaConf.is_missing(node.job, "num") else "hydra.sweep.dir"
        folders.claim(Path(node.runtime.output_dir), f"set {key}=another folder, one that is new or empty")
