"""What Hydra's own part of a configuration may name, looked at before Hydra makes its launcher, sweeper and callbacks of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

from omegaconf import Container, OmegaConf
from omegaconf.resolvers import oc

from runner.allow import ENVIRONMENT, OPTION, by_name, let_in, listed, refusal
from runner.errors import UserError

PLUGIN = re.compile(r"hydra_plugins(\.[a-z]\w*)+\.[A-Z]\w*|hydra\._internal\.core_plugins\.basic_\w+\.Basic\w+")
CALLBACKS = {"hydra.experimental.callbacks.LogJobReturnCallback"}
HANDLERS = ("StreamHandler", "FileHandler", "NullHandler", "handlers.RotatingFileHandler", "handlers.TimedRotatingFileHandler")
OURS = {"runner.private.Formatter", "runner.private.LogFile"}
LOGGING = {f"logging.{name}" for name in (*HANDLERS, "Formatter")} | {"colorlog.ColoredFormatter"} | OURS
STREAMS = {"ext://sys.stdout", "ext://sys.stderr"}
# Of launchers: commands for a shell, and programs.
COMMANDS = {"setup", "python", "srun_args", "runtime_env", "additional_parameters"}
# Variables that a configuration may set for a job: none that choose code, or what is let in.
SETTABLE = ("TF_", "OMP_", "MKL_", "OPENBLAS_", "CUDA_VISIBLE_")
READABLE = {"MLFLOW_TRACKING_URI", "RAY_ADDRESS", "HOME", "USER", "TMPDIR", "SLURM_JOB_ID", "SLURM_ARRAY_TASK_ID"}


def of_hydra(cfg: Any) -> Iterator[str]:
    """Yield what in Hydra's own part of a composed configuration is not allowed, before Hydra makes anything of it."""
    node = cfg.hydra
    for part in ("callbacks", "launcher", "sweeper", "job_logging", "hydra_logging"):
        if node.get(part) is not None:
            yield from of_part(f"hydra.{part}", node[part])
    for key in node.job.env_set:
        if not str(key).startswith(SETTABLE):
            yield f"hydra.job.env_set.{key} is not allowed; set the variable where you start the command"
    for key in node.job.env_copy:
        if key not in {*READABLE, *listed(ENVIRONMENT)}:
            yield f"hydra.job.env_copy names {key!r}, which files would hold; if it is no secret, set {ENVIRONMENT}={key}"


def of_part(path: str, node: Any) -> Iterator[str]:
    """Yield what in one of Hydra's nodes is not allowed; a value taken from elsewhere must be no node itself."""
    if not isinstance(node, Container) or node._is_none() or node._is_missing():
        return
    pairs = node.items_ex(resolve=False) if OmegaConf.is_dict(node) else enumerate(node._content or [])
    for key, each in pairs:
        below = f"{path}.{key}"
        value = each if not hasattr(each, "_value") else each._value()
        interpolated = isinstance(value, str) and "${" in value
        if isinstance(each, Container) and not interpolated:
            yield from of_part(below, each)
        elif key in ("_target_", "class", "()", "stream"):
            if value is not None and (not isinstance(value, str) or not of_hydra_by_name(path, key, value)):
                yield refusal(below, value)
        elif interpolated and is_node(node, key):
            yield f"{below} must be written out, got {value!r}"
        elif isinstance(value, str) and re.search("ext://|cfg://", value):
            yield refusal(below, value)
        if key in COMMANDS and path.startswith("hydra.launcher") and value and let_in(below) is None:
            yield f"{below} holds commands, which a configuration may not; if you trust it, add {OPTION} {below}"


def of_hydra_by_name(path: str, key: object, name: str) -> bool:
    """Tell whether one of Hydra's nodes may name this."""
    if let_in(name):
        return True
    if path.startswith(("hydra.job_logging", "hydra.hydra_logging")):
        return name in (STREAMS if key == "stream" else LOGGING)
    if key != "_target_":
        return True
    if path.startswith("hydra.callbacks"):
        return name in CALLBACKS
    return bool(PLUGIN.fullmatch(name)) if path in ("hydra.launcher", "hydra.sweeper") else by_name(name)


def is_node(parent: Any, key: Any) -> bool:
    """Tell whether an interpolated value is a node; what cannot be told yet, as a job's number, is none."""
    try:
        return isinstance(parent[key], Container)
    except Exception:
        return False


def environment(key: str, default: Any = oc._DEFAULT_MARKER_) -> Any:
    """Return a variable's value for `${oc.env:…}`; raises UserError for one that is not known to be no secret."""
    if key not in {*READABLE, *listed(ENVIRONMENT)}:
        raise UserError(f"the variable {key!r} may not be read by a configuration; if it is no secret, set {ENVIRONMENT}={key}")
    return oc.env(key, default)


def guard() -> None:
    """Have Hydra's compositions looked at as they come, before Hydra makes its launcher, sweeper and callbacks of them."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    OmegaConf.register_new_resolver("oc.env", environment, replace=True)
    original = ConfigLoaderImpl.load_configuration
    if hasattr(original, "__wrapped__"):
        return
    setattr(ConfigLoaderImpl, "load_configuration", guarded(original))


def guarded(load: Callable[..., Any]) -> Callable[..., Any]:
    """Return what composes, and raises UserError where Hydra's own part names what is not allowed."""

    @wraps(load)
    def load_configuration(*args: Any, **keys: Any) -> Any:
        cfg = load(*args, **keys)
        if found := list(of_hydra(cfg)):
            raise UserError("; ".join(found))
        return cfg

    return load_configuration
