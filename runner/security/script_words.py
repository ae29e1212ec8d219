"""Check a launcher's settings: submitit writes them into a script, joblib evaluates one, Ray connects to the named cluster."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from runner.errors import UserError
from runner.security import targets, trust

PATH = "hydra.launcher"
NUMBER, WORD, NODES, TEXT = r"-?\d+(\.\d+)?([eE][+-]?\d+)?", r"[\w.,:=+@/-]*", r"[\w.,:&|*!()\[\]-]*", r"[\w .,:=+@/()-]*"
NUMBERS = (
    *("timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes", "array_parallelism", "num_gpus"),
    *("cpus_per_gpu", "gpus_per_task", "signal_delay_s", "max_num_timeout", "stderr_to_stdout", "use_srun"),
)
WORDS = ("partition", "qos", "gres", "mem_per_gpu", "mem_per_cpu", "account", "mail_type", "dependency", "exclusive", "wckey")
SUBMITIT = (
    dict.fromkeys(NUMBERS, NUMBER) | dict.fromkeys(WORDS, WORD) | dict.fromkeys(("constraint", "exclude", "nodelist"), NODES)
)
SUBMITIT |= {"name": TEXT, "comment": TEXT, "mail_user": WORD, "submitit_folder": r"[^'\"\\`$;&|<>\x00-\x1f\x7f]+"}
JOBLIB = dict.fromkeys(("n_jobs", "verbose", "timeout"), NUMBER)
JOBLIB |= {"batch_size": rf"{NUMBER}|auto", "pre_dispatch": r"all|(\d+ ?\* ?)?(n_jobs|\d+)", "backend": "loky"}
JOBLIB |= {"prefer": "processes", "require": "", "mmap_mode": "r"}  # mmap_mode: the value of the published schema
RAY_INIT: dict[str, str] = dict.fromkeys(
    ("object_store_memory", "include_dashboard", "log_to_driver", "num_cpus", "num_gpus"), NUMBER
)
RAY_REMOTE: dict[str, str] = dict.fromkeys(("num_cpus", "num_gpus", "memory", "max_retries", "max_calls", "resources"), NUMBER)


def check(settings: Mapping[str, Any], known: Mapping[str, str], path: str = PATH) -> None:
    """Raise UserError for settings that are unknown or that a shell may run as commands, unless the user allows them."""
    if found := list(faults(settings, known, path)):
        raise UserError("; ".join(found))


def faults(settings: Mapping[str, Any], known: Mapping[str, str], path: str) -> Iterator[str]:
    """Yield the errors of settings."""
    for name, value in settings.items():
        key = f"{path}.{name}"
        if value in (None, "", [], {}) or targets.let_in(key) is not None:
            continue
        if name not in known:
            yield f"{key} may hold commands, which a configuration may not; if you trust it, add {targets.OPTION} {key}"
        elif not all(fits(each, known[name]) for each in (value.values() if isinstance(value, dict) else [value])):
            yield f"{key} must be {'a number' if known[name] == NUMBER else 'plain words'}, got {value!r}"


def fits(value: Any, form: str) -> bool:
    """Return whether a value is a number, a boolean, or a text of this form."""
    return isinstance(value, bool | int | float) or (isinstance(value, str) and re.fullmatch(form, value) is not None)


def submitit(settings: Mapping[str, Any], sweep: str) -> None:
    """Raise UserError for invalid settings of submitit, or for a folder outside the sweep's that is not trusted."""
    check(settings, SUBMITIT)
    folder = str(settings["submitit_folder"])
    if not trust.below(folder, sweep):
        trust.folder(f"{PATH}.submitit_folder", folder)


def ray(settings: Mapping[str, Any]) -> None:
    """Raise UserError for invalid settings of Ray, or an untrusted cluster: it runs any code and receives the user's token."""
    check({key: value for key, value in settings.items() if key not in ("init", "remote")}, {}, f"{PATH}.ray")
    init = dict(settings["init"])
    trust.service(f"{PATH}.ray.init.address", init.pop("address", None), "RAY_ADDRESS")
    check(init, RAY_INIT, f"{PATH}.ray.init")
    check(settings["remote"], RAY_REMOTE, f"{PATH}.ray.remote")
