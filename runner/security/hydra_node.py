"""Check the code that Hydra's own node names: when it is composed, and before Hydra makes objects of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from runner.errors import UserError
from runner.security import origins, targets
from runner.security.names import current
from runner.security.targets import ENVIRONMENT, OPTION, by_name, let_in, listed, refusal

PARTS = ("callbacks", "launcher", "sweeper", "job_logging", "hydra_logging")
PLUGINS = {
    "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
    "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
    *(f"hydra_plugins.runner_sweeps.{name}" for name in ("GridSweeper", "OptunaSweeper", "FusedLauncher")),
    *(f"hydra_plugins.runner_launchers.{name}Launcher" for name in ("Joblib", "Ray", "Local", "Slurm")),
}
CALLBACKS = {"hydra.experimental.callbacks.LogJobReturnCallback"}
HANDLERS = ("StreamHandler", "FileHandler", "NullHandler", "handlers.RotatingFileHandler", "handlers.TimedRotatingFileHandler")
OURS = {"runner.security.secrets.Formatter", "runner.security.secrets.LogFile"}
LOGGING = {f"logging.{name}" for name in (*HANDLERS, "Formatter")} | {"colorlog.ColoredFormatter"} | OURS
STREAMS = {"ext://sys.stdout", "ext://sys.stderr"}
# Keys of launchers that hold shell commands or programs.
COMMANDS = {"setup", "python", "srun_args", "runtime_env", "additional_parameters"}
# Variables that a configuration may set for a job. None of them chooses code or allows more targets.
SETTABLE = {f"TF_{name}" for name in ("CPP_MIN_LOG_LEVEL", "CPP_MAX_VLOG_LEVEL", "NUM_INTRAOP_THREADS", "NUM_INTEROP_THREADS")}
SETTABLE |= {f"TF_{name}" for name in ("DETERMINISTIC_OPS", "CUDNN_DETERMINISTIC", "ENABLE_ONEDNN_OPTS")}
SETTABLE |= {f"TF_{name}" for name in ("FORCE_GPU_ALLOW_GROWTH", "GPU_ALLOCATOR", "GPU_THREAD_MODE", "GPU_THREAD_COUNT")}
SETTABLE |= {f"OMP_{name}" for name in ("NUM_THREADS", "PROC_BIND", "PLACES", "DYNAMIC", "SCHEDULE", "THREAD_LIMIT")}
SETTABLE |= {"MKL_NUM_THREADS", "MKL_DYNAMIC", "OPENBLAS_NUM_THREADS", "CUDA_VISIBLE_DEVICES"}
READABLE = {"MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "RAY_ADDRESS", "HOME", "USER", "TMPDIR"}
READABLE |= {"SLURM_JOB_ID", "SLURM_ARRAY_TASK_ID"}


def of_hydra(cfg: Any) -> Iterator[str]:
    """Yield the errors of Hydra's own node in a composed configuration, before Hydra makes objects of it."""
    node = cfg.hydra
    for part in PARTS:
        yield from of_part(f"hydra.{part}", known(node._get_node(part)))
    yield from origins.logs("hydra.hydra_logging", known(node._get_node("hydra_logging")), None)
    for key in node.job.env_set:
        if str(key) not in SETTABLE or not re.fullmatch(r"[\w.,:{}+-]*", str(node.job.env_set[key])):
            yield f"hydra.job.env_set.{key} is not allowed; set the variable where you start the command"
    for key in node.job.env_copy:
        if key not in {*READABLE, *listed(ENVIRONMENT)}:
            yield f"hydra.job.env_copy names {key!r}, which files would hold; if it is no secret, set {ENVIRONMENT}={key}"


def known(node: Any) -> Any:
    """Return a node as plain data; a value that cannot be resolved yet, such as a job's number, stays as written."""
    try:
        found = node._dereference_node()
    except OmegaConfBaseException:
        return node._value()
    content = found._value()
    if isinstance(found, DictConfig) and isinstance(content, dict):
        return {key: known(each) for key, each in content.items()}
    if isinstance(found, ListConfig) and isinstance(content, list):
        return [known(each) for each in content]
    return content


def of_part(path: str, plain: Any) -> Iterator[str]:
    """Yield the errors in one of Hydra's nodes, as plain data; text with an interpolation is checked once it is resolved."""
    pairs = plain.items() if isinstance(plain, dict) else enumerate(plain) if isinstance(plain, list) else ()
    for key, value in pairs:
        below = f"{path}.{key}"
        if isinstance(value, str) and "${" in value:
            continue
        if key in ("_target_", "class", "()", "stream"):
            if value is not None and (not isinstance(value, str) or not of_hydra_by_name(path, key, value)):
                yield refusal(below, value)
        elif isinstance(value, str) and re.search("ext://|cfg://", value):
            yield refusal(below, value)
        yield from of_part(below, value)
        if key in COMMANDS and path.startswith("hydra.launcher") and value and let_in(below) is None:
            yield f"{below} holds commands, which a configuration may not; if you trust it, add {OPTION} {below}"


def of_hydra_by_name(path: str, key: object, name: str) -> bool:
    """Return whether one of Hydra's nodes may name this target, class or stream."""
    if let_in(name):
        return True
    if path.startswith(("hydra.job_logging", "hydra.hydra_logging")):
        return current(name) in (STREAMS if key == "stream" else LOGGING)
    if key != "_target_":
        return True
    if path.startswith("hydra.callbacks"):
        return name in CALLBACKS
    return name in PLUGINS if path in ("hydra.launcher", "hydra.sweeper") else by_name(name)


def settled(path: str, node: Any) -> Any:
    """Return one of Hydra's nodes as plain data, resolved once; raises UserError for a name that is not allowed in it."""
    plain = targets.plain(path, node)
    if found := list(of_part(path, plain)):
        raise UserError("; ".join(found))
    return plain


def environment(key: str, default: Any = oc._DEFAULT_MARKER_) -> Any:
    """Return a variable's value for `${oc.env:…}`; raises UserError unless the variable is known to hold no secret."""
    if key not in {*READABLE, *listed(ENVIRONMENT)}:
        raise UserError(f"the variable {key!r} may not be read by a configuration; if it is no secret, set {ENVIRONMENT}={key}")
    return oc.env(key, default)


def refused(name: str) -> Callable[..., Any]:
    """Return a resolver that raises UserError: its result would be a node that has not been checked."""

    def resolver(*_: Any) -> Any:
        raise UserError(f"${{{name}:…}} is not allowed in a configuration; write out what it makes")

    return resolver


def guard() -> None:
    """Patch Hydra so that it checks what it composes, and makes callbacks, plugins and logging only from checked nodes."""
    from hydra._internal import logging_config
    from hydra._internal.callbacks import Callbacks
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra.core.plugins import Plugins

    OmegaConf.register_new_resolver("oc.env", environment, replace=True)
    for name in ("oc.create", "oc.decode"):
        OmegaConf.register_new_resolver(name, refused(name), replace=True)
    for owner, name, guarded in (
        (ConfigLoaderImpl, "load_configuration", composed),
        (Callbacks, "__init__", called_back),
        (Plugins, "_instantiate", plugged),
        (logging_config, "configure_logging", logged),
    ):
        original = getattr(owner, name)
        if not hasattr(original, "__wrapped__"):
            setattr(owner, name, guarded(original))


def composed(load: Callable[..., Any]) -> Callable[..., Any]:
    """Return a `load_configuration` that raises UserError if Hydra's own node names code that is not allowed."""

    @wraps(load)
    def load_configuration(*args: Any, **keys: Any) -> Any:
        cfg = load(*args, **keys)
        if found := list(of_hydra(cfg)):
            raise UserError("; ".join(found))
        return cfg

    return load_configuration


def called_back(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return an `__init__` of Hydra's callbacks that makes only those that are allowed."""

    @wraps(original)
    def init(self: Any, config: Any = None) -> None:
        nodes = None if config is None else OmegaConf.select(config, "hydra.callbacks")
        plain = settled("hydra.callbacks", nodes) or {}
        self.callbacks = [targets.made(f"hydra.callbacks.{name}", each) for name, each in plain.items() if each is not None]

    return init


def plugged(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that makes one of Hydra's plugins, if it is allowed."""

    @wraps(original)
    def plugin(self: Any, config: Any) -> Any:
        path = config._get_full_key(None)
        plain = settled(path, config)
        for where, name in targets.targets(path, {key: each for key, each in plain.items() if key != "_target_"}):
            targets.target(where, name)
        return original(self, OmegaConf.create(plain))

    return plugin


def logged(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that configures logging with allowed handlers and streams only."""

    @wraps(original)
    def configure_logging(config: Any) -> None:
        original(by_present_names(settled("hydra.job_logging", config)))

    return configure_logging


def by_present_names(plain: Any) -> Any:
    """Return a logging configuration, as plain data, with the present names of this package's classes that have moved."""
    if isinstance(plain, dict):
        return {key: current(each) if key in ("class", "()") else by_present_names(each) for key, each in plain.items()}
    return plain
