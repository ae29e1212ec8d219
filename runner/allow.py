"""What a configuration may name: parts of this package, of Keras and of Hydra, and what the user's own command lets in besides.

A shared YAML or a sweep file is data, and data must not choose which code runs. This is no sandbox: what is let in is code.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pkgutil import resolve_name
from typing import Any

from omegaconf import Container, OmegaConf
from omegaconf.resolvers import oc

from runner.errors import UserError, first_line

OPTION, VARIABLE, ENVIRONMENT = "--allow-target", "RUNNER_ALLOW_TARGETS", "RUNNER_ALLOW_ENV"

# Where a name may stand, and in which modules what it names may be defined.
OWN = "runner."
NAMESPACES: dict[str, tuple[str, ...]] = {
    name: (OWN + "losses",) for name in ("runner.losses", *(f"runner.losses.{each}" for each in ("data", "instances", "noise")))
}
NAMESPACES |= {
    f"runner.{name}": (f"runner.{name}",)
    for name in ("guesses", "optimizers", "strategies", "least_squares", "second_order", "by_scipy", "executions", "stopping")
}
# The recorder's functions bear the names of those that they wrap.
NAMESPACES |= {f"runner.{name}": ("runner.tracking", "runner.recorder") for name in ("tracking", "recorder")}
NAMESPACES |= {"runner.portrait": ("runner.portrait",), "optuna.samplers": ("optuna.samplers", "optuna._experimental")}
NAMESPACES |= {
    f"{keras}.{name}": (f"{root}.{name.split('.')[0]}",)
    for keras, root in (("keras", "keras.src"), ("tensorflow.keras", "keras.src"), ("tf_keras", "tf_keras.src"))
    for name in ("optimizers", "optimizers.schedules", "losses", "layers", "activations", "initializers", "regularizers")
}
NAMESPACES |= {"tf_keras.optimizers.legacy": ("tf_keras.src.optimizers",), "keras.constraints": ("keras.src.constraints",)}
NAMESPACES |= {"tensorflow.compat.v1.train": ("tensorflow.python.training",)}
# By name, whatever it is made of; each makes an array of what it is given.
ARRAYS = {f"numpy.{name}" for name in ("arange", "array", "eye", "full", "linspace", "logspace", "ones", "zeros")}
ARRAYS |= {f"tensorflow.{name}" for name in ("constant", "eye", "fill", "linspace", "ones", "range", "zeros")}
SINGLE = {*ARRAYS, "keras.Sequential", "keras.Input"}
# They make objects of what a dictionary says, or run what a file or a string holds.
READERS = {"get", "deserialize", "serialize", "Lambda"}
READING = ("keras.src.layers.preprocessing", "keras.src.layers.core.lambda_layer")

# Of Hydra's own nodes.
PLUGIN = re.compile(r"hydra_plugins(\.[a-z]\w*)+\.[A-Z]\w*|hydra\._internal\.core_plugins\.basic_\w+\.Basic\w+")
CALLBACKS = {"hydra.experimental.callbacks.LogJobReturnCallback"}
HANDLERS = ("StreamHandler", "FileHandler", "NullHandler", "handlers.RotatingFileHandler", "handlers.TimedRotatingFileHandler")
LOGGING = {f"logging.{name}" for name in (*HANDLERS, "Formatter")} | {"colorlog.ColoredFormatter", "runner.shown.Formatter"}
STREAMS = {"ext://sys.stdout", "ext://sys.stderr"}
# Of launchers: commands for a shell, and programs.
COMMANDS = {"setup", "python", "srun_args", "runtime_env", "additional_parameters"}
# Variables that a configuration may set for a job: none that choose code, or what is let in.
SETTABLE = ("TF_", "OMP_", "MKL_", "OPENBLAS_", "CUDA_VISIBLE_")
READABLE = {"MLFLOW_TRACKING_URI", "RAY_ADDRESS", "HOME", "USER", "TMPDIR", "SLURM_JOB_ID", "SLURM_ARRAY_TASK_ID"}


# What the options of this process's command named.
NAMED: list[str] = []


@contextmanager
def named(words: list[str]) -> Iterator[None]:
    """Take `--allow-target NAME` out of a command's words, and let it in here and in the processes started in this block.

    Raises UserError for what Hydra offers to get round its own guard, or to read a pickle.
    """
    if os.environ.get("HYDRA_INSTANTIATE_ALLOWLIST_OVERRIDE"):
        raise UserError(f"HYDRA_INSTANTIATE_ALLOWLIST_OVERRIDE is set, which has no use here; unset it and use {OPTION}")
    before, given = os.environ.get(VARIABLE), NAMED
    given.clear()
    rest = list(words)
    words.clear()
    while rest:
        word = rest.pop(0)
        option, equals, value = word.partition("=")
        if option == OPTION:
            if not equals and (not rest or rest[0].startswith("-")):
                raise UserError(f"{OPTION} needs a module or a name in it: {OPTION} my_loss")
            given.append(value if equals else rest.pop(0))
        elif option.startswith("--e") and "--experimental-rerun".startswith(option):
            raise UserError(f"{option} would read a pickle, which runs as code; give the overrides again instead")
        else:
            words.append(word)
    if unlike := [each for each in given if not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", each)]:
        raise UserError(f"{OPTION} must be a module or a name in it, got {unlike[0]!r}: {OPTION} my_loss")
    if given:
        os.environ[VARIABLE] = ":".join([*filter(None, [before]), *given])
    try:
        yield
    finally:
        if given:
            os.environ.pop(VARIABLE)
            os.environ.update({} if before is None else {VARIABLE: before})


def listed(variable: str) -> list[str]:
    """Return the names that a variable lists."""
    return [each for each in re.split(r"[:,\s]+", os.environ.get(variable, "")) if each]


def let_in(name: str) -> str | None:
    """Return what the user's command named that lets this name in."""
    return next((each for each in listed(VARIABLE) if name == each or name.startswith(f"{each}.")), None)


def by_name(name: str) -> bool:
    """Tell whether this name is one of those that are allowed."""
    namespace, _, last = name.rpartition(".")
    ours = name in SINGLE or (namespace in NAMESPACES and not last.startswith("_") and last not in READERS)
    return bool(re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", name)) and (ours or let_in(name) is not None)


def refusal(path: str, name: Any) -> str:
    """Return the line about a target that is not allowed."""
    if not isinstance(name, str):
        return f"{path} must be the name of a function or a class, got {name!r}"
    module = name.rpartition(".")[0].partition(":")[0] or name
    return f"{path} {name!r} is not allowed; if you trust it, add {OPTION} {module}"


def target(path: str, name: Any) -> Any:
    """Return what a `_target_` names, where both the name and what it turns out to be are allowed; raises UserError."""
    if not isinstance(name, str) or not by_name(name):
        raise UserError(refusal(path, name))
    try:
        found = resolve_name(name)
    except Exception as error:
        raise UserError(f"{path} names {name!r}, which cannot be had: {first_line(error)}") from error
    if name in SINGLE or let_in(name) == name or not callable(found):
        return found
    module, qualified = getattr(found, "__module__", None), getattr(found, "__qualname__", None)
    real = f"{module}.{qualified}" if module and qualified else f"a {type(found).__module__}.{type(found).__name__}"
    if let_in(name):
        fine = let_in(real) is not None
    else:
        homes = NAMESPACES[name.rpartition(".")[0]]
        fine = "." not in str(qualified) and within(real, homes) and not within(real, READING)
    if not fine:
        raise UserError(f"{path} {name!r} is {real}, which is not allowed; if you trust it, add {OPTION} {name}")
    return found


def within(name: str, modules: tuple[str, ...]) -> bool:
    """Tell whether a name lies in one of these modules."""
    return any(name.startswith(f"{each}.") for each in modules)


def targets(path: str, plain: Any) -> Iterator[tuple[str, Any]]:
    """Yield every `_target_` in plain data with its path."""
    pairs = plain.items() if isinstance(plain, dict) else enumerate(plain) if isinstance(plain, list) else ()
    for key, each in pairs:
        below = f"{path}.{key}" if path else str(key)
        if key == "_target_":
            yield below, each
        yield from targets(below, each)


def faults(path: str, plain: Any) -> Iterator[str]:
    """Yield what in plain data is not allowed, by its name alone: nothing is imported."""
    for where, name in targets(path, plain):
        # What was left open is told as such.
        if name != "???" and not (isinstance(name, str) and by_name(name)):
            yield refusal(where, name)
    yield from serialised(path, plain)


def serialised(path: str, plain: Any) -> Iterator[str]:
    """Yield where plain data are an object as Keras writes it, which Keras would import."""
    if isinstance(plain, dict) and "class_name" in plain:
        yield f"{path}.class_name is how Keras stores an object, which is not read from a configuration; use _target_"
    for key, each in plain.items() if isinstance(plain, dict) else enumerate(plain) if isinstance(plain, list) else ():
        yield from serialised(f"{path}.{key}", each)


def checked(path: str, plain: Any) -> Any:
    """Return plain data whose every target, and whatever that turns out to be, is allowed; raises UserError."""
    for where, name in targets(path, plain):
        target(where, name)
    if found := list(serialised(path, plain)):
        raise UserError("; ".join(found))
    return plain


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
            yield f"hydra.job.env_copy names {key!r}, which would be written to files; if it is no secret, set {ENVIRONMENT}={key}"


def of_part(path: str, node: Any) -> Iterator[str]:
    """Yield what in one of Hydra's nodes is not allowed; a value taken from elsewhere must be no node itself."""
    if not isinstance(node, Container):
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


def interpolated(plain: Mapping[str, Any] | Any) -> bool:
    """Tell whether plain data hold an interpolation that is not resolved yet."""
    if isinstance(plain, str):
        return "${" in plain
    values = plain.values() if isinstance(plain, dict) else plain if isinstance(plain, list) else ()
    return any(interpolated(each) for each in values)
