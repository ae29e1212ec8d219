"""A grammar of harmful configurations: what is named × where it stands × how it is disguised × which command reads it.

`@S@` stands for the sandbox, `@P@` for the port of a server there. Each configuration is what somebody else may have sent: a
file, a store's record, or what lies beside the command.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

# A module that leaves a trace when it is imported.
TOUCH = "import os\nopen(os.environ['WATCHED'] + '/canary', 'a').write(__name__)\n"
# A target and the arguments with which it leaves a trace: a file, a read secret, a port, an import.
NODES: dict[str, dict[str, Any]] = {
    "command": {"_target_": "mlflow.utils.process._exec_cmd", "cmd": ["touch", "@S@/canary"]},
    "system": {"_target_": "os.system", "command": "touch @S@/canary"},
    "popen": {"_target_": "subprocess.Popen", "args": ["touch", "@S@/canary"]},
    "exec": {"_target_": "builtins.exec", "_args_": ["open('@S@/canary', 'w')"]},
    "import": {"_target_": "importlib.import_module", "name": "evil"},
    "own": {"_target_": "evil.touch"},
    "probe": {"_target_": "this.s"},
    "pickle": {"_target_": "joblib.load", "filename": "@S@/work/evil.pkl"},
    "numpy": {"_target_": "numpy.load", "file": "@S@/work/evil.npy", "allow_pickle": True},
    "handler": {"_target_": "logging.FileHandler", "filename": "@S@/victim/new.log"},
    "write": {"_target_": "tensorflow.io.write_file", "filename": "@S@/canary", "contents": "x"},
    "server": {
        "_target_": "tensorflow.compat.v1.train.Server",
        "server_or_cluster_def": {"local": ["localhost:0"]},
        "start": True,
    },
    "lookup": {"_target_": "tf_keras.layers.StringLookup", "vocabulary": "@S@/secret.txt"},
    "vocabulary": {"_target_": "keras.layers.StringLookup", "vocabulary": "@S@/secret.txt"},
    "saver": {"_target_": "tensorflow.compat.v1.train.export_meta_graph", "filename": "@S@/canary"},
    "summary": {"_target_": "tensorflow.compat.v1.train.SummarySaverHook", "save_steps": 1, "output_dir": "@S@/victim"},
    "lambda": {"_target_": "keras.layers.Lambda", "function": "evil.touch"},
    "model": {"_target_": "keras.models.load_model", "filepath": "@S@/work/evil.keras"},
    "stored": {"class_name": "Lambda", "module": "keras.layers", "config": {"function": "evil.touch"}},
    "storage": {"_target_": "optuna.samplers._base.json.load", "fp": "@S@/secret.txt"},
}
# Where a node may stand, with what must be chosen besides; `[]` is a list of one.
NODE_PLACES: dict[str, str] = {
    "loss": "",
    "loss.inner": "",
    "loss.model": "loss=keras_model",
    "loss.model.layers[]": "loss=keras_model",
    "loss.loss": "loss=keras_model",
    "loss.data": "loss=mlp",
    "loss.data.held_out": "loss=mlp",
    "loss.dimension": "loss=sphere",
    "optimizer": "optimizer=custom",
    "optimizer.learning_rate": "",
    "optimizer.momentum": "",
    "optimizer.name": "",
    "guess": "",
    "guess.low": "guess=uniform",
    "strategy": "",
    "strategy.persistent": "",
    "execution": "",
    "execution.chunk": "",
    "stopping.plateau": "stopping=plateau",
    "stopping.plateau.patience": "stopping=plateau",
    "stopping.mine": "",
    "stopping.time_limit": "",
    "noise": "",
    "noise.scale": "noise=gaussian",
    "instance": "instance=random",
    "tracking": "",
    "tracking.experiment": "",
    "tracking.name": "",
    "report": "",
    "max_iterations": "",
    "seed": "",
    "sweep.zip[]": "",
    "checkpoint.every_seconds": "",
    "hydra.callbacks.mine": "",
    "hydra.callbacks.mine.flag": "callback",
    "hydra.launcher": "",
    "hydra.launcher.n_jobs": "hydra/launcher=joblib",
    "hydra.launcher.folder": "",
    "hydra.sweeper": "",
    "hydra.sweeper.max_batch_size": "",
    "hydra.sweeper.params.seed": "",
    "hydra.sweeper.sampler": "hydra/sweeper=optuna hydra.sweeper.n_trials=1",
    "hydra.sweeper.storage": "hydra/sweeper=optuna hydra.sweeper.n_trials=1",
    "hydra.job_logging": "",
    "hydra.job_logging.handlers.console": "",
    "hydra.job_logging.handlers.console.level": "",
    "hydra.job_logging.formatters.short": "",
    "hydra.job_logging.filters.mine": "",
    "hydra.job_logging.root.level": "",
    "hydra.hydra_logging": "",
    "hydra.hydra_logging.handlers.console": "",
    "hydra.hydra_logging.handlers.console.level": "",
    "hydra.hydra_logging.loggers.mine.level": "",
    "hydra.job.name": "",
    "hydra.job.env_set.TF_NUM_INTEROP_THREADS": "",
    "hydra.run.dir": "",
    "hydra.help.template": "",
}
# Texts that the logging configurator turns into objects.
LOGGED = ("ext://evil.touch", "ext://this.s", "ext://os.environ", "cfg://handlers.console", "ext://logging.os.system")
LOGGED_PLACES = tuple(
    f"hydra.{part}.{place}"
    for part in ("job_logging", "hydra_logging")
    for place in (
        "handlers.console.level",
        "handlers.console.stream",
        "root.level",
        "handlers.console.formatter",
        "filters.a.name",
    )
)
# Folders and files outside those of the run; each place takes them.
PATHS = (
    "../../../../victim",
    "../victim",
    "@S@/victim",
    ".",
    "keys",
    "..",
    "${oc.env:HOME}/.ssh",
    "outputs/../keys",
    "@S@/home/.ssh",
    "outputs/link",
)
PATH_PLACES = (
    "hydra.run.dir",
    "hydra.sweep.dir",
    "hydra.sweep.subdir",
    "hydra.output_subdir",
    "hydra.job.name",
    "tracking.pending",
)
PATH_PLACES += (
    "hydra.job_logging.handlers.file.filename",
    "hydra.hydra_logging.handlers.console.filename",
    "hydra.runtime.output_dir",
)
VARIABLES = {
    "TF_PLUGGABLE_DEVICE_LIBRARY_PATH": "@S@/work/library.so",
    "LD_PRELOAD": "@S@/work/library.so",
    "OMP_TOOL_LIBRARIES": "@S@/work/library.so",
    "PYTHONPATH": "@S@/work",
    "PATH": "@S@/work/bin",
    "RUNNER_ALLOW_TARGETS": "evil",
    "RUNNER_ALLOW_ENV": "MLFLOW_TRACKING_PASSWORD",
    "XLA_FLAGS": "--xla_dump_to=@S@/victim",
    "TF_XLA_FLAGS": "--tf_xla_clustering_debug",
    "TF_DUMP_GRAPH_PREFIX": "@S@/victim",
    "TF_CPP_VLOG_FILENAME": "@S@/victim/log",
    "MKL_VERBOSE_OUTPUT_FILE": "@S@/victim/log",
    "MLFLOW_TRACKING_URI": "http://127.0.0.1:@P@",
    "HYDRA_INSTANTIATE_ALLOWLIST_OVERRIDE": "os.system",
}
SEARCHED = ("pkg://evil", "pkg://evil.conf", "file://@S@/work/beside", "@S@/work/beside", "pkg://this")
# What a cluster's options may smuggle into the script of a task.
SMUGGLED = (
    'x"\ntouch @S@/canary\n#',
    "x\ntouch @S@/canary",
    "$(touch @S@/canary)",
    "`touch @S@/canary`",
    "x; touch @S@/canary",
)
CLUSTER = ("comment", "partition", "qos", "constraint", "exclude", "gres", "account", "name", "mem_per_cpu", "gpus_per_task")
COMMANDED = ("setup", "teardown", "python", "srun_args", "wckey", "additional_parameters")
STORES = (
    "http://127.0.0.1:@P@",
    "http://me@127.0.0.1:@P@",
    "postgresql+psycopg://me@127.0.0.1:@Q@/db",
    "http://localhost:@P@/",
)
BOMBS = {
    "aliases": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True)),
    "strings": "".join(f"loss{i}: &s{i} {'x' * 9 if i == 0 else json.dumps(f'${{loss{i - 1}}}' * 9)}\n" for i in range(9)),
    "nodes": "loss:\n  a0: [1,1,1,1,1,1,1,1,1]\n"
    + "".join(f"  a{i}: [{','.join([f'${{loss.a{i - 1}}}'] * 9)}]\n" for i in range(1, 9)),
    "wide": "loss: {x: [" + "1," * 30_000 + "1]}\n",
    "large": "loss: {note: " + "x" * 3_000_000 + "}\n",
    "limit": "max_iterations: 9223372036854775807\n",
    "limit_beyond": f"max_iterations: {10**21}\n",
}
SWEPT = (
    "seed=range(0,400000000)",
    "optimizer.learning_rate=logspace(-9,1,400000000)",
    "optimizer.learning_rate=linspace(0,1,400000000)",
)
# How a value is disguised: of a place and a node the content of a file, as nested data.
Trick = Callable[[str, Any], dict[str, Any]]


def nested(place: str, value: Any) -> dict[str, Any]:
    """Return data that hold a value at a place."""
    for part in reversed(place.split(".")):
        value = {part[:-2]: [value]} if part.endswith("[]") else {part: value}
    return value


def merged(*parts: dict[str, Any]) -> dict[str, Any]:
    """Return data that hold what each of these holds; the last one wins."""
    found: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            both = isinstance(value, dict) and isinstance(found.get(key), dict)
            found[key] = merged(found[key], value) if both else value
    return found


def flow(node: Any) -> str:
    """Return a node as OmegaConf's own grammar has it, without quotes."""
    if isinstance(node, dict):
        return "{" + ", ".join(f"{key}: {flow(each)}" for key, each in node.items()) + "}"
    if isinstance(node, list):
        return "[" + ", ".join(map(flow, node)) + "]"
    return str(node) if isinstance(node, int | float) or str(node).replace(".", "").isidentifier() else f"'{node}'"


def renamed(place: str, node: Any, name: str, *others: dict[str, Any]) -> dict[str, Any]:
    """Return a node at its place whose target is called otherwise, with further data."""
    node = {**node, "_target_": name} if isinstance(node, dict) and "_target_" in node else node
    return merged(*others, nested(place, node))


def target(node: Any) -> str:
    """Return what a node names."""
    return node.get("_target_", "evil.touch") if isinstance(node, dict) else str(node)


def parent(place: str) -> str:
    """Return the place that holds this one."""
    return place.rpartition(".")[0] or "loss"


TRICKS: dict[str, Trick] = {
    "plain": nested,
    "in a list": lambda place, node: nested(place, [node]),
    "in a dictionary": lambda place, node: nested(place, {"inner": node}),
    "created": lambda place, node: nested(place, f"${{oc.create:{flow(node)}}}"),
    "decoded": lambda place, node: nested(place, f"${{oc.decode:{json.dumps(flow(node))}}}"),
    "selected": lambda place, node: nested(place, f"${{oc.select:nowhere,{flow(node)}}}"),
    "escaped, created": lambda place, node: nested(place, f"\\${{oc.create:{flow(node)}}}"),
    "escaped twice, created": lambda place, node: nested(place, f"\\\\\\${{oc.create:{flow(node)}}}"),
    "escaped, decoded": lambda place, node: nested(place, f"\\${{oc.decode:{json.dumps(flow(node))}}}"),
    "escaped in a created one": lambda place, node: nested(place, f"${{oc.create:{{a: '\\${{oc.create:{flow(node)}}}'}}}}"),
    "named elsewhere": lambda place, node: renamed(
        place, node, "${tracking.experiment}", {"tracking": {"experiment": target(node)}}
    ),
    "named elsewhere, escaped": lambda place, node: renamed(
        place, node, "\\${tracking.experiment}", {"tracking": {"experiment": target(node)}}
    ),
    "named beside": lambda place, node: renamed(place, node, "${.beside}", nested(f"{place}.beside", target(node))),
    "named above": lambda place, node: renamed(place, node, "${..beside}", nested(f"{parent(place)}.beside", target(node))),
    "named at the root": lambda place, node: renamed(place, node, "${loss.beside}", nested("loss.beside", target(node))),
    "named in two roots": lambda place, node: renamed(
        place,
        node,
        "${optimizer.name}",
        {"optimizer": {"name": "keras.layers.Flatten"}},
        nested(f"{parent(place)}.optimizer.name", target(node)),
    ),
    "pieced together": lambda place, node: renamed(
        place,
        node,
        "${tracking.name}.${tracking.experiment}",
        {"tracking": dict(zip(("name", "experiment"), target(node).rsplit(".", 1), strict=False))},
    ),
    "referred to": lambda place, node: merged({"loss": {"hidden": node}}, nested(place, "${loss.hidden}")),
    "one of several values": lambda place, node: merged({"loss": {"hidden": [node]}}, nested(place, "${loss.hidden.0}")),
    "partial": lambda place, node: nested(place, {**node, "_partial_": True} if isinstance(node, dict) else node),
    "with arguments": lambda place, node: nested(
        place,
        {"_target_": target(node), "_args_": [v for k, v in node.items() if k != "_target_"]}
        if isinstance(node, dict)
        else node,
    ),
    "not recursive": lambda place, node: nested(
        place, {"_target_": "keras.Sequential", "layers": [node], "_recursive_": True, "_convert_": "object"}
    ),
    "as an argument": lambda place, node: nested(
        place, {"_target_": "keras.optimizers.schedules.CosineDecay", "initial_learning_rate": node, "decay_steps": 10}
    ),
    "in an optimizer": lambda place, node: nested(
        place, {"_target_": "tensorflow.compat.v1.train.GradientDescentOptimizer", "learning_rate": node}
    ),
    "in a wrapper": lambda place, node: nested(
        place,
        {
            "_target_": "keras.layers.TimeDistributed",
            "layer": {"_target_": "keras.layers.Dense", "units": 2, "activation": node},
        },
    ),
    "written by Keras": lambda place, node: nested(
        place, {"class_name": "Lambda", "module": "keras.layers", "config": {"function": target(node)}, "registered_name": None}
    ),
    "as a class of logging": lambda place, node: nested(
        place, {("()" if "handlers" in place or "format" in place else "class"): target(node), "command": "touch @S@/canary"}
    ),
}


@dataclass(frozen=True)
class Case:
    """A configuration and the command that reads it.

    `files` maps paths below the working folder to their content; `recorded` is laid over a recorded run's configuration; below
    `own`, folders that the user's command names, new files may appear.
    """

    name: str
    words: tuple[str, ...]
    module: str = "runner"
    files: dict[str, str] = field(default_factory=dict)
    recorded: dict[str, Any] | None = None
    variables: dict[str, str] = field(default_factory=dict)
    own: tuple[str, ...] = ()


# Fast, and recorded nowhere, unless the case is about that.
BASE = ("max_iterations=1", "execution=eager", "report=none")
SENT = ("--config-dir", "conf")
COMMANDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "run": ("runner", ()),
    "sweep": ("runner", ("-m", "seed=1,2")),
    "fused": ("runner", ("-m", "seed=1,2", "hydra/launcher=fused")),
    "check": ("runner.check", ()),
    "shown": ("runner", ("--cfg", "job", "--resolve")),
    "helped": ("runner", ("--help",)),
}
# How much oftener than others these are drawn.
OFTEN = {"command": 10, "own": 6, "pickle": 4, "system": 3, "run": 6, "sweep": 4, "check": 4, "fused": 2}
RECORDED = ("runner.verify", "runner.report", "runner.diff")


def sent(name: str, data: dict[str, Any] | str, command: str, chosen: str = "", untracked: bool = True, **more: Any) -> Case:
    """Return the case of a file that is sent as an experiment."""
    module, mode = COMMANDS[command]
    text = data if isinstance(data, str) else yaml.safe_dump(data, sort_keys=False, width=10_000) if data else ""
    defaults = "".join(f"  - override /{key}: {value}\n" for key, value in overridden(chosen))
    head = "# @package _global_\n" + (f"defaults:\n{defaults}" if defaults else "")
    words = (*SENT, *mode, *BASE, *(("tracking=none",) if untracked else ()), "experiment=sent")
    return Case(
        f"{name}, {command}", words, module, {"conf/experiment/sent.yaml": head + text, **more.pop("files", {})}, **more
    )


def overridden(chosen: str) -> Iterator[tuple[str, str]]:
    """Yield which choices a file makes."""
    for each in chosen.split():
        key, _, value = each.partition("=")
        if "." not in key and key != "callback":
            yield key, value


def further(chosen: str, data: dict[str, Any]) -> dict[str, Any]:
    """Return a file's data with the values that its choices need."""
    for each in chosen.split():
        key, _, value = each.partition("=")
        if key == "callback":
            callback = {"_target_": "hydra.experimental.callbacks.LogJobReturnCallback"}
            data = merged({"hydra": {"callbacks": {"mine": callback}}}, data)
        elif "." in key:
            data = merged(nested(key, int(value)), data)
    return data


def disguised(picked: random.Random) -> Case:
    """Return a case of a node, disguised, at a place."""
    (what,) = picked.choices(list(NODES), [OFTEN.get(each, 1) for each in NODES])
    place, trick = picked.choice(list(NODE_PLACES)), picked.choice(list(TRICKS))
    chosen = NODE_PLACES[place]
    data = further(chosen, TRICKS[trick](place, NODES[what]))
    name = f"{what} at {place}, {trick}"
    if not place.startswith("hydra") and picked.random() < 0.25:
        # A record holds no escapes but what its author wrote there, and needs a target where its group has one.
        return Case(f"{name}, recorded", (), picked.choice(RECORDED), {"chosen": chosen}, recorded=data)
    (command,) = picked.choices(list(COMMANDS), [OFTEN.get(each, 1) for each in COMMANDS])
    return sent(name, data, command, chosen, untracked=not place.startswith("tracking"))


def logged(picked: random.Random) -> Case:
    """Return a case of a text that logging's configurator would turn into an object."""
    text, place = picked.choice(LOGGED), picked.choice(LOGGED_PLACES)
    ways = {
        "plain": nested(place, text),
        "referred to": merged({"tracking": {"experiment": text}}, nested(place, "${tracking.experiment}")),
        "pieced together": merged({"tracking": {"experiment": text[3:]}}, nested(place, text[:3] + "${tracking.experiment}")),
        "escaped": merged({"tracking": {"experiment": text}}, nested(place, "\\${tracking.experiment}")),
        "decoded": nested(place, f"${{oc.decode:{json.dumps(json.dumps(text))}}}"),
        "in a list": nested(place, [text]),
    }
    way = picked.choice(list(ways))
    return sent(f"{text} at {place}, {way}", ways[way], picked.choice(("run", "sweep", "check")))


def elsewhere(picked: random.Random) -> Case:
    """Return a case of a path that leads out of the run's folders, or to what is the user's."""
    path, place = picked.choice(PATHS), picked.choice(PATH_PLACES)
    way = picked.choice(("plain", "referred to"))
    data = nested(place, path)
    if way == "referred to":
        data = merged({"tracking": {"experiment": path}}, nested(place, "${tracking.experiment}"))
    return sent(
        f"{path} at {place}, {way}", data, picked.choice(("run", "sweep", "check")), untracked=place != "tracking.pending"
    )


def own_folder(picked: random.Random) -> Case:
    """Return a case of a folder that the user names, in which are files of the user's."""
    key, mode = picked.choice((("hydra.run.dir", ()), ("hydra.sweep.dir", ("-m", "seed=1,2")), ("tracking.pending", ())))
    folder = picked.choice((".", "keys", "../victim"))
    further = {"hydra.sweep.dir": ("hydra.sweep.subdir=.",)}.get(key, ())
    words = (*mode, "max_iterations=1", "execution=eager", f"{key}={folder}", *picked.choice(((), further)))
    return Case(f"own {key}={folder}", words, own=("work", "victim"))


def pending(picked: random.Random) -> Case:
    """Return a case of a folder of the user's that is taken for the one of unsent runs, or of a spool that names files."""
    folder = picked.choice(("keys", ".", "@S@/home/.ssh", "crafted", ".."))
    if picked.random() < 0.5:
        return Case(f"unsent runs in {folder}, sync", ("--pending", folder), "runner.sync")
    named = json.dumps({"uri": "sqlite:///outputs/mlflow.db", "folder": "@S@/victim", "pointer": "@S@/victim/config.yaml"})
    first = picked.choice((named, "@S@/victim", "@S@/victim/config.yaml\n", "/etc/hostname"))
    names = ("crafted/spool", "crafted/spool.jsonl", "crafted/pointer", "crafted/" + "0" * 32)
    return Case(f"a crafted spool ({first[:20]}), sync", ("crafted",), "runner.sync", {each: first for each in names})


def variable(picked: random.Random) -> Case:
    """Return a case of a variable that chooses code, or where something is written or sent."""
    name = picked.choice(list(VARIABLES))
    data = {"hydra": {"job": {"env_set": {name: VARIABLES[name]}}}}
    return sent(f"variable {name}", data, picked.choice(("run", "sweep")), variables={"WATCHED_VARIABLES": name})


def searched(picked: random.Random) -> Case:
    """Return a case of a place where Hydra looks for configurations or plugins."""
    if picked.random() < 0.3:
        beside = {f"hydra_plugins/{name}": TOUCH for name in ("evil.py", "evil_too/__init__.py")}
        return Case("plugins beside the command", (*BASE, "tracking=none"), picked.choice(("runner", "runner.check")), beside)
    path = picked.choice(SEARCHED)
    if picked.random() < 0.5:
        data = {"hydra": {"searchpath": [path]}}
        return sent(f"search path {path}", data, picked.choice(("run", "sweep")))
    words = (*SENT, "--config-name", "main", *BASE, "tracking=none")
    text = f"defaults:\n  - config\n  - _self_\nhydra:\n  searchpath: ['{path}']\n"
    return Case(f"search path {path}, first file", words, "runner", {"conf/main.yaml": text})


def smuggled(picked: random.Random) -> Case:
    """Return a case of a command in an option of a cluster."""
    key = picked.choice((*CLUSTER, *COMMANDED))
    value: Any = picked.choice(SMUGGLED)
    if key in COMMANDED and key != "python":
        value = {"x": value} if key == "additional_parameters" else [value]
    data = {"hydra": {"launcher": {key: value}}}
    if key in ("teardown", "wckey"):
        own = {
            "_target_": "hydra_plugins.runner_launchers.SlurmLauncher",
            "submitit_folder": "${hydra.sweep.dir}/.submitit/%j",
            key: value,
        }
        own["_target_"] = picked.choice(
            (own["_target_"], "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher")
        )
        files = {"conf/hydra/launcher/mine.yaml": yaml.safe_dump(own)}
        return sent(f"{key} {value!r} of an own launcher", {}, "sweep", "hydra/launcher=mine", files=files)
    return sent(f"{key} {value!r} on Slurm", data, "sweep", "hydra/launcher=slurm")


def credentials(picked: random.Random) -> Case:
    """Return a case of a store that a file names, to which the user's own passwords would go."""
    uri = picked.choice(STORES)
    data = {"tracking": {"uri": uri}}
    if picked.random() < 0.3:
        data = {"hydra": {"job": {"env_set": {"MLFLOW_TRACKING_URI": uri}}}}
    return sent(f"store {uri}", data, picked.choice(("run", "sweep")), untracked=False)


def bomb(picked: random.Random) -> Case:
    """Return a case of a small text that stands for much."""
    if picked.random() < 0.3:
        word = picked.choice(SWEPT)
        return Case(f"bomb {word}", ("-m", word, *BASE, "tracking=none"))
    name = picked.choice(list(BOMBS))
    base = BASE[1:] if "limit" in name else BASE
    words = (*SENT, *base, "tracking=none", "experiment=sent")
    return Case(f"bomb {name}", words, files={"conf/experiment/sent.yaml": "# @package _global_\n" + BOMBS[name]})


# Each kind with its share.
KINDS = {
    disguised: 60,
    logged: 9,
    elsewhere: 9,
    own_folder: 2,
    pending: 4,
    variable: 5,
    searched: 4,
    smuggled: 4,
    credentials: 3,
    bomb: 2,
}


def case(number: int) -> Case:
    """Return the case of a number: always the same one."""
    picked = random.Random(number)
    (kind,) = picked.choices(list(KINDS), list(KINDS.values()))
    return kind(picked)
