"""What a configuration that someone else wrote cannot do: run code of its choice, read a pickle, read or leave secrets."""

from __future__ import annotations

import logging
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import environment, own_loss

from runner.config import parameters
from runner.errors import UserError
from runner.security import names, pickles, secrets, targets
from runner.trace import Trace

# Whatever of these ran would leave this file.
CANARY = "canary"
# Of Python, of the libraries here, and of this package by way of what it imports.
HARMFUL = [
    "os.system",
    "posix.system",
    "subprocess.run",
    "subprocess.Popen",
    "builtins.eval",
    "builtins.exec",
    "builtins.open",
    "builtins.__import__",
    "importlib.import_module",
    "runpy.run_path",
    "pickle.load",
    "pickle.loads",
    "shutil.rmtree",
    "pathlib.Path",
    "ctypes.CDLL",
    "yaml.unsafe_load",
    "logging.os.system",
    "functools.partial",
    "operator.methodcaller",
    "unittest.mock.Mock",
    "hydra.utils.get_method",
    "hydra.utils.instantiate",
    "omegaconf.OmegaConf.register_new_resolver",
    "numpy.load",
    "numpy.fromfile",
    "numpy.lib.npyio.load",
    "pandas.read_pickle",
    "joblib.load",
    "cloudpickle.loads",
    "mlflow.pyfunc.load_model",
    "tensorflow.io.read_file",
    "tensorflow.io.write_file",
    "tensorflow.saved_model.load",
    "tensorflow.py_function",
    "keras.utils.get_file",
    "keras.saving.load_model",
    "keras.models.load_model",
    "keras.optimizers.deserialize",
    "keras.optimizers.get",
    "keras.layers.Lambda",
    "keras.layers.TFSMLayer",
    "keras.layers.StringLookup",
    "keras.layers.JaxLayer",
    "keras.layers.FlaxLayer",
    "keras.layers.TorchModuleWrapper",
    "keras.layers.TextVectorization",
    "keras.layers.Wrapper",
    "tf_keras.layers.StringLookup",
    "tf_keras.layers.Lambda",
    "tf_keras.layers.IntegerLookup",
    "tensorflow.keras.layers.StringLookup",
    "tensorflow.keras.layers.Lambda",
    "tensorflow.compat.v1.train.Server",
    "tensorflow.compat.v1.train.Saver",
    "tensorflow.compat.v1.train.MonitoredTrainingSession",
    "tensorflow.compat.v1.train.write_graph",
    "tensorflow.compat.v1.train.import_meta_graph",
    "tensorflow.compat.v1.train.match_filenames_once",
    "optuna.samplers.BaseSampler",
    "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper",
    "keras.optimizers.Adam.from_config",
    "tf_keras.models.load_model",
    "runner.config.build.tf.io.write_file",
    "runner.losses.__class__",
    "runner.system.startup.leave",
    "runner.tracking.store.artifacts.log_file",
    "runner.tracking.contract.Path",
    "runner.stopping.np.load",
    "runner.report.command._os",
    "runner.tracking.client.trusted",
    "runner.tracking.client.Session",
    "runner.losses:rosenbrock",
    "",
    "os",
    "..os.system",
    7,
]


@pytest.fixture
def nothing_of_ours(monkeypatch):
    monkeypatch.delenv(targets.VARIABLE)


@pytest.mark.parametrize("name", HARMFUL)
def test_no_other_target_is_had(nothing_of_ours, name):
    with pytest.raises(UserError, match="_target_"):
        targets.target("loss._target_", name)


@pytest.mark.parametrize(
    "name",
    [
        "runner.losses.rosenbrock",
        "keras.optimizers.Adam",
        "keras.optimizers.schedules.CosineDecay",
        "tf_keras.optimizers.SGD",
        "tensorflow.compat.v1.train.AdamOptimizer",
        "keras.losses.Huber",
        "keras.layers.Dense",
        "keras.Sequential",
        "tensorflow.constant",
        "numpy.linspace",
        "optuna.samplers.TPESampler",
        "runner.tracking.Mlflow",
    ],
)
def test_what_configurations_are_for_is_had(nothing_of_ours, name):
    assert callable(targets.target("loss._target_", name))


# What an argument is called by which something is read, opened, called or imported.
READS = re.compile("file|path|dir$|vocab|custom|address|url|uri|host|port$|server|module|command|function$|^fn$|storage")
# Of those that are listed: where rows go is the user's own to say, and the README tells of it.
KNOWN = {"runner.tracking.Mlflow"}


def test_each_listed_name_is_there_and_reads_nothing(nothing_of_ours):
    import inspect

    for name in names.NAMES - KNOWN:
        found = targets.target("loss._target_", name)
        assert callable(found)
        asked = inspect.signature(found).parameters
        assert not [each for each in asked if READS.search(each)], name


# Where a harmful target may stand, and what it would be called with there.
PLACES = [
    ("loss._target_=os.system", "+loss.command=touch canary"),
    ("+loss.inner={_target_:os.system,command:touch canary}",),
    ("+loss.inner=[{_target_:os.system,command:touch canary}]",),
    ("optimizer/learning_rate=cosine_decay", "optimizer.learning_rate._target_=os.system"),
    ("guess._target_=${optimizer.name}", "+optimizer.name=os.system"),
    ("strategy._target_=os.system",),
    ("execution._target_=os.system",),
    ("tracking._target_=os.system",),
    ("report._target_=os.system",),
    ("noise._target_=os.system",),
    ("stopping=plateau", "stopping.plateau._target_=os.system"),
    ("optimizer={_target_:keras.optimizers.SGD,learning_rate:{class_name:system,module:os,config:{command:touch canary}}}",),
    ("+hydra.callbacks.mine={_target_:os.system,command:touch canary}",),
    ("+hydra.callbacks.mine={_target_:hydra.experimental.callbacks.PickleJobInfoCallback}",),
    ("+hydra.callbacks.mine=${loss.callback}", "+loss.callback={_target_:os.system,command:touch canary}"),
    ("hydra.launcher._target_=os.system",),
    ("hydra.sweeper._target_=os.system",),
    ("+hydra.sweeper.params.a={_target_:os.system,command:touch canary}",),
    ("hydra.job_logging.handlers.console.class=os.system",),
    ("hydra.job_logging.handlers.console.stream=ext://os.environ",),
    ("hydra.hydra_logging.handlers.console.class=logging.os.system",),
    ("+hydra.launcher.setup=[touch canary]",),
    ("+hydra.job.env_set.RUNNER_ALLOW_TARGETS=os", "loss._target_=os.system"),
    ("+hydra.job.env_set.LD_PRELOAD=./evil.so",),
]


@pytest.mark.parametrize("mode", [(), ("-m",)], ids=["run", "sweep"])
@pytest.mark.parametrize("words", PLACES, ids=lambda words: words[0][:60])
def test_no_place_lets_one_in(cli, runs, tmp_path, nothing_of_ours, words, mode):
    ended = cli(*mode, *words)
    assert ended.code == 1 and ended.err.startswith("error: ") and ended.err.count("\n") == 1, ended.err
    told = ended.out + ended.err
    assert "Traceback" not in told
    assert "allow" in told or "must be" in told or "class_name" in told
    assert not (tmp_path / CANARY).exists() and runs() == []


# What overrides cannot say, as an experiment's file would.
FILES = [
    "loss: {inner: '${oc.create:{_target_: os.system, command: touch canary}}'}",
    "loss: {inner: \"${oc.decode:'{_target_: os.system, command: touch canary}'}\"}",
    "loss: {inner: '${oc.select:none,{_target_: os.system, command: touch canary}}'}",
    "loss: {a: os.system, _target_: '${.a}'}",
    "hydra: {callbacks: {mine: '${oc.create:{_target_: os.system, command: touch canary}}'}}",
    "hydra: {callbacks: {mine: {_target_: '${loss.a}', command: touch canary}}}\nloss: {a: os.system}",
    "hydra: {job_logging: {handlers: {console: {(): os.system, command: touch canary}}}}",
    "hydra: {job_logging: {formatters: {short: {(): os.system, command: touch canary}}}}",
    "hydra: {hydra_logging: {handlers: {console: {(): os.system, command: touch canary}}}}",
    "hydra: {hydra_logging: '${oc.create:{version: 1, root: {}, filters: {a: {(): os.system}}}}'}",
    "hydra: {job: {env_copy: [HOME, PATH]}}",
]


@pytest.mark.parametrize("text", FILES)
def test_no_file_lets_one_in(cli, runs, tmp_path, nothing_of_ours, text):
    (tmp_path / "conf/experiment").mkdir(parents=True)
    (tmp_path / "conf/experiment/sent.yaml").write_text(f"# @package _global_\n{text}\n")
    ended = cli("--config-dir", "conf", "experiment=sent")
    assert ended.code == 1 and ended.err.startswith("error: ") and ended.err.count("\n") == 1, ended.err
    # What Hydra cannot even read lets nobody in either.
    assert any(part in ended.err for part in ("allow", "must be", "token recognition error"))
    assert not (tmp_path / CANARY).exists() and runs() == []


EVIL = "open('canary', 'w')\n\n\ndef touch(*args, **keys):\n    return 1\n"
NODE = "{_target_: evil.touch}"
# How a node may be written so that whoever looks at the text, or resolves it once, does not see it; and what lies elsewhere.
TRICKS: dict[str, tuple[Any, str]] = {
    "escaped": (rf"\${{oc.create:{NODE}}}", ""),
    "escaped twice": (rf"\\\${{oc.create:{NODE}}}", ""),
    "in halves": (f"${{tracking.experiment}}{{oc.create:{NODE}}}", "$"),
    "made": (f"${{oc.create:{NODE}}}", ""),
    "decoded": (r"\${oc.decode:\${tracking.experiment}}", NODE),
    "as a default": (rf"\${{oc.select:none,{NODE}}}", ""),
    "name elsewhere": ({"_target_": "${tracking.experiment}"}, "evil.touch"),
    "name escaped": ({"_target_": r"\${tracking.experiment}"}, "evil.touch"),
    "name by a resolver": ({"_target_": "${oc.select:tracking.experiment}"}, "evil.touch"),
    "not called": ({"_target_": "evil.touch", "_partial_": True}, ""),
    "in arguments": ({"_target_": "numpy.array", "_args_": [{"_target_": "evil.touch"}]}, ""),
    "not entered": ({"_target_": "numpy.array", "_recursive_": False, "object": {"_target_": "evil.touch"}}, ""),
    "stored by Keras": ({"class_name": "touch", "module": "evil", "config": {}, "registered_name": None}, ""),
}
SPOTS: dict[str, tuple[str, ...]] = {
    "optimizer.learning_rate": (),
    "optimizer.clipnorm": ("optimizer=adam",),
    "loss.model.layers": ("loss=keras_model",),
    "loss.loss.reduction": ("loss=keras_model",),
    "guess.x": ("guess=point",),
    "noise": (),
    "stopping.plateau.patience": ("stopping=plateau",),
    "tracking.name": (),
    "hydra.callbacks.mine": (),
    "hydra.callbacks.mine.a": (),
    "hydra.sweeper.max_batch_size": ("-m", "seed=1,2"),
    "hydra.sweeper.params.seed": ("-m",),
    "hydra.sweeper.sampler.seed": ("-m", "hydra/sweeper=optuna", "seed=1,2"),
    "hydra.launcher.ray.init.address": ("-m", "hydra/launcher=ray", "seed=1,2"),
    "hydra.job_logging.handlers.console": (),
    "hydra.hydra_logging.formatters.short": (),
}
# Each place with two tricks or so, or with all.
PAIRS = [
    pytest.param(spot, trick, marks=[] if (i - j) % 6 == 0 else pytest.mark.long)
    for i, spot in enumerate(SPOTS)
    for j, trick in enumerate(TRICKS)
]
TOLD = re.compile("allow|interpolation|class_name|must be|needs countable|no argument|type hint|not supported|Unsupported")


def sent(folder: Path, keys: dict[str, Any]) -> None:
    """Put a file of an experiment as a stranger might send it into `conf`, beside a module that leaves the canary."""
    (folder / "evil.py").write_text(EVIL)
    (folder / "conf/experiment").mkdir(parents=True)
    whole: dict[str, Any] = {}
    for key, value in keys.items():
        *path, last = key.split(".")
        node = whole
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    (folder / "conf/experiment/sent.yaml").write_text(f"# @package _global_\n{yaml.safe_dump(whole)}")


@pytest.fixture
def untouched(tmp_path, nothing_of_ours, monkeypatch):
    """Have a test end without a canary, and without the module that leaves it imported."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    yield
    assert not (tmp_path / CANARY).exists() and "evil" not in sys.modules


@pytest.mark.parametrize(("spot", "trick"), PAIRS)
def test_no_text_becomes_code_once_it_is_resolved(cli, runs, tmp_path, untouched, spot, trick):
    value, elsewhere = TRICKS[trick]
    keys: dict[str, Any] = {spot: [value] if spot.endswith("layers") else value, "tracking.experiment": elsewhere or "runner"}
    if spot.endswith(".mine.a"):
        keys["hydra.callbacks.mine._target_"] = "hydra.experimental.callbacks.LogJobReturnCallback"
    sent(tmp_path, keys)
    ended = cli("--config-dir", "conf", *SPOTS[spot], "experiment=sent", "max_iterations=1")
    assert ended.code == 1 and ended.err.startswith("error: ") and ended.err.count("\n") == 1, ended.err
    assert TOLD.search(ended.err + ended.out), ended.err
    assert runs() == []


@pytest.mark.long
@pytest.mark.parametrize(
    ("spot", "words"),
    [
        ("optimizer.learning_rate", ("runner.check",)),
        ("optimizer.learning_rate", ("runner", "-m", "seed=1,2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=1")),
        ("hydra.callbacks.mine.a", ("runner",)),
        ("hydra.sweeper.max_batch_size", ("runner", "-m", "seed=1,2")),
        ("hydra.job_logging.root.level", ("runner",)),
        ("hydra.hydra_logging.root.level", ("runner",)),
    ],
)
def test_in_a_process_of_its_own_no_text_becomes_code_either(prepared, spot, words):
    logged = "logging" in spot
    keys: dict[str, Any] = {spot: "${tracking.experiment}" if logged else TRICKS["escaped"][0]}
    keys["tracking.experiment"] = "ext://evil.touch" if logged else "runner"
    if "callbacks" in spot:
        keys["hydra.callbacks.mine._target_"] = "hydra.experimental.callbacks.LogJobReturnCallback"
    sent(prepared, keys)
    command = [sys.executable, "-m", *words, "experiment=sent", "max_iterations=1", "--config-dir", "conf"]
    environ = {key: value for key, value in environment(prepared).items() if key != targets.VARIABLE}
    ended = subprocess.run(command, cwd=prepared, env=environ, capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and not (prepared / CANARY).exists(), ended.stderr
    assert TOLD.search(ended.stderr + ended.stdout), ended.stderr


LOGGING = [
    "job_logging.handlers.console.level",
    "job_logging.root.level",
    "job_logging.loggers.mine.level",
    "job_logging.handlers.file.filename",
    "job_logging.formatters.short.format",
    "job_logging.formatters.short.()",
    "hydra_logging.root.level",
    "hydra_logging.handlers.console.level",
    "hydra_logging.handlers.console.stream",
    "hydra_logging.handlers.console.class",
]


@pytest.mark.parametrize("place", LOGGING)
@pytest.mark.parametrize(
    "value",
    [
        pytest.param("ext://evil.touch", marks=pytest.mark.long),
        "${tracking.experiment}",
        pytest.param(r"\${tracking.experiment}", marks=pytest.mark.long),
    ],
)
def test_logging_imports_nothing_that_a_configuration_names(cli, runs, tmp_path, untouched, place, value):
    sent(tmp_path, {f"hydra.{place}": value, "tracking.experiment": "ext://evil.touch"})
    ended = cli("--config-dir", "conf", "experiment=sent", "max_iterations=1")
    assert ended.code == 1 and ended.err.count("\n") == 1 and runs() == []
    assert any(word in ended.err for word in ("allow", "interpolation", "name it yourself"))


def test_of_a_sweep_only_the_job_that_names_one_fails(cli, runs, tmp_path, nothing_of_ours):
    ended = cli("-m", "loss._target_=os.system,runner.losses.quadratic", "max_iterations=2", "hydra/launcher=fused")
    assert ended.code == 1 and "add --allow-target os" in ended.out
    assert len(runs()) == 1


def test_a_file_that_names_one_is_refused_and_cannot_let_itself_in(cli, runs, tmp_path, nothing_of_ours, monkeypatch):
    own_loss(tmp_path, "evil", f"open({CANARY!r}, 'w')\n\ndef loss(x, *, way):\n    return x**2\n")
    (tmp_path / "conf/experiment").mkdir()
    (tmp_path / "conf/experiment/own.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /loss: evil\nhydra:\n  job:\n    env_set: {RUNNER_ALLOW_TARGETS: evil}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for words in (["loss=evil"], ["experiment=own"], ["-m", "loss=evil,sphere", "max_iterations=1", "hydra/launcher=fused"]):
        assert cli("--config-dir", "conf", *words).code == 1
    assert not (tmp_path / CANARY).exists()
    assert [run.data.params["loss._target_"] for run in runs()] == ["runner.losses.sphere"]


GUESS = ("guess=point", "guess.x=3", "max_iterations=2")


@pytest.mark.parametrize("given", ["--allow-target evil", "--allow-target=evil", "--allow-target evil.loss", "variable"])
def test_the_users_own_command_lets_one_in(cli, runs, tmp_path, nothing_of_ours, monkeypatch, given):
    own_loss(tmp_path, "evil", "def loss(x, *, way):\n    return (x - way) ** 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    refused = cli("--config-dir", "conf", "loss=evil", *GUESS)
    assert refused.err == "error: loss._target_ 'evil.loss' is not allowed; if you trust it, add --allow-target evil\n"
    if given == "variable":
        monkeypatch.setenv(targets.VARIABLE, "another:evil")
    ended = cli(*([] if given == "variable" else given.split()), "--config-dir", "conf", "loss=evil", *GUESS)
    assert ended.code == 0 and ended.err == "" and len(runs()) == 1
    if given != "variable":
        assert cli("--config-dir", "conf", "loss=evil", *GUESS).code == 1


def test_what_a_module_that_is_let_in_imports_is_not(tmp_path, nothing_of_ours, monkeypatch):
    (tmp_path / "imports_os.py").write_text("import os\nfrom os import system\nfrom functools import partial\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(targets.VARIABLE, "imports_os")
    for name in ("imports_os.os.system", "imports_os.system", "imports_os.partial"):
        with pytest.raises(UserError, match="is not allowed"):
            targets.target("loss._target_", name)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--allow-target"], "--allow-target needs a module"),
        (["--allow-target", "-m"], "--allow-target needs a module"),
        (["--allow-target=*"], "got '*'"),
        (["--experimental-rerun", "config.pickle"], "would read a pickle"),
        (["--exp=config.pickle"], "would read a pickle"),
    ],
)
def test_options_that_let_in_too_much_are_refused(cli, runs, words, told):
    ended = cli(*words)
    assert ended.code == 1 and told in ended.err and ended.err.count("\n") == 1
    assert runs() == []


def test_hydras_own_way_round_its_guard_is_refused(cli, monkeypatch):
    monkeypatch.setenv("HYDRA_INSTANTIATE_ALLOWLIST_OVERRIDE", "os.system")
    ended = cli()
    assert ended.code == 1 and ended.err.startswith("error: HYDRA_INSTANTIATE_ALLOWLIST_OVERRIDE is set")


def test_a_variable_is_read_only_where_the_user_says_that_it_is_no_secret(cli, runs, monkeypatch):
    monkeypatch.setenv("MINE", "SECRETPW")
    words = ("tracking.name=${oc.env:MINE}", "max_iterations=1")
    ended = cli(*words)
    assert ended.code == 1 and ended.err.count("\n") == 1 and "RUNNER_ALLOW_ENV=MINE" in ended.err
    assert "SECRETPW" not in ended.out + ended.err and runs() == []
    ended = cli("+hydra.job.env_copy=[MINE]")
    assert ended.code == 1 and "RUNNER_ALLOW_ENV=MINE" in ended.err
    monkeypatch.setenv(targets.ENVIRONMENT, "MINE")
    assert cli(*words).code == 0
    assert [run.info.run_name for run in runs()] == ["SECRETPW"]


@pytest.mark.parametrize("nested", [{"_target_": "${instance.other}"}, [{"_target_": "${instance.other}"}]])
def test_a_record_names_nothing_that_its_reader_sees_otherwise(untouched, nested):
    from runner import records, verify
    from runner.report.tables import facts

    # Within the node of the data, `instance` is another one than from the root.
    data = {"_target_": "runner.losses.data.iris", "instance": {"other": "evil.touch"}, "split_seed": 0, "held_out": nested}
    loss = {"_target_": "runner.losses.softmax_regression", "data": data, "l2": 0.1, "batch_size": None}
    plain = {
        "loss": loss,
        "instance": {"_target_": "runner.losses.instances.none", "other": "runner.losses.data.iris"},
        "seed": 0,
    }
    text = yaml.safe_dump(plain)
    assert facts.of({"a": text}).get("a", facts.UNKNOWN) is facts.UNKNOWN
    rows = Trace(0, np.zeros((1, 1)), np.zeros(1), np.zeros((1, 1)))
    run = records.Recorded("a", "a", parameters.flat(plain), {"ending": "converged"}, text, rows)
    with pytest.raises(UserError, match="must hold no interpolation"):
        verify.configuration(run)


def test_a_studys_storage_holds_states_of_its_sampler_and_no_other_pickle(tmp_path, monkeypatch):
    import cmaes
    import optuna

    monkeypatch.chdir(tmp_path)
    pickles.guard()
    sampler = optuna.samplers.CmaEsSampler()

    def restored(state: Any) -> Any:
        attrs = sampler._split_optimizer_str(pickle.dumps(state).hex())
        return sampler._restore_optimizer([optuna.trial.create_trial(value=0.0, system_attrs=attrs)])

    for each in (cmaes.CMA, cmaes.SepCMA):
        assert restored(each(mean=np.zeros(2), sigma=1.0)).population_size > 1
    with pytest.raises(UserError, match=r"holds a pickle of posix.system"):
        restored(Canary())
    assert not (tmp_path / CANARY).exists()


class Canary:
    """What, unpickled, leaves the file."""

    def __reduce__(self):
        return os.system, (f"touch {CANARY}",)


def test_pickles_that_lie_in_a_runs_folder_are_not_read(drawn, runs, tmp_path):
    from runner import verify

    assert drawn("max_iterations=3").code == 0
    for folder in {path.parent for path in tmp_path.rglob("*") if path.is_file()}:
        for name in ("config.pickle", "run.pkl", "checkpoint.pkl", "x.npy"):
            (folder / name).write_bytes(pickle.dumps(Canary()))
    assert drawn("max_iterations=4").code == 0
    assert drawn("-m", "seed=1,2", "max_iterations=3").code == 0
    assert verify.report([runs()[0].info.run_id]) == 0
    assert not (tmp_path / CANARY).exists()


def test_what_a_run_writes_is_for_its_user_alone(drawn, tmp_path):
    before = {path for path in tmp_path.rglob("*")}
    mask = os.umask(0o022)
    try:
        assert drawn("max_iterations=3").code == 0
        assert drawn("-m", "seed=1,2", "max_iterations=3").code == 0
        assert os.umask(0o022) == 0o022, "the command left its mask behind"
    finally:
        os.umask(mask)
    new: list[Path] = [path for path in tmp_path.rglob("*") if path not in before]
    assert any(path.name == "overrides.yaml" for path in new) and any(path.name == "trajectory.parquet" for path in new)
    assert {oct(path.stat().st_mode & 0o077) for path in new} == {"0o0"}


KEYED = """
def loss(x, *, way, api_key, place):
    if x.shape.rank == 1:
        raise RuntimeError(f"no access: api_key={api_key} at {place}")
    return (x - way) ** 2
"""


def seen(folder: Path, secret: str) -> list[Path]:
    """Return the files below a folder that hold a secret."""
    return [path for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


def test_a_secret_is_in_nothing_that_is_written_or_printed(drawn, runs, tmp_path, monkeypatch):
    (tmp_path / "keyed.py").write_text(KEYED)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(targets.VARIABLE, "keyed")
    words = ["+loss.way=1", "+loss.api_key=SECRETPW", "+loss.place='https://me:SECRETPW@example.org/x'", *GUESS]
    words = ["loss._target_=keyed.loss", *words, "tracking.name='api_key=SECRETPW'"]
    told = [drawn(*words), drawn("-m", *words, "seed=1,2"), drawn("-m", *words, "seed=3,4", "hydra/launcher=fused")]
    assert [ended.code for ended in told] == [0, 0, 0], told
    wrong = ["optimizer.learning_rate=-1,0.1", "guess.x=[3,1]"]
    told += [drawn(*words, "guess.x=[3,1]"), drawn("-m", *words, *wrong), drawn(*words, "+loss.token=SECRETPW")]
    assert [ended.code for ended in told[3:]] == [1, 1, 1], told
    assert not [ended for ended in told if "SECRETPW" in ended.out + ended.err]
    assert seen(tmp_path, "SECRETPW") == []
    params = runs()[0].data.params
    assert params["loss.api_key"] == "***" and params["loss.place"] == "https://me:***@example.org/x"
    assert (tmp_path / "outputs").is_dir() and "***" in next(tmp_path.rglob("overrides.yaml")).read_text()


@pytest.mark.long
def test_the_password_of_a_server_works_and_is_in_nothing_that_is_written_or_printed(
    cli, tmp_path, tmp_path_factory, monkeypatch
):
    from servers import mlflow

    folder = tmp_path_factory.mktemp("server")
    with mlflow(f"sqlite:///{folder}/server.db", folder) as address:
        uri = address.replace("://", "://user:SECRETPW@")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        told = [
            cli("max_iterations=2"),
            cli(f"tracking.uri={uri}", "max_iterations=3"),
            cli("-m", "seed=1,2", f"tracking.uri={uri}"),
        ]
    assert [ended.code for ended in told] == [0, 0, 0], told
    assert not [ended for ended in told if "SECRETPW" in ended.out + ended.err]
    assert seen(tmp_path, "SECRETPW") == [] == seen(folder, "SECRETPW")
    down = cli(f"tracking.uri={uri}", "max_iterations=2")
    assert down.code == 1 and "SECRETPW" not in down.out + down.err


def test_a_message_forges_no_line_and_moves_no_cursor(cli, runs, tmp_path, monkeypatch):
    (tmp_path / "loud.py").write_text("def loss(x):\n    raise RuntimeError('a\\n[ERROR] forged \\x1b[2J\\x07')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(targets.VARIABLE, "loud")
    ended = cli("loss._target_=loud.loss", *GUESS)
    assert ended.code == 1 and ended.err.count("\n") == 1 and "\x1b" not in ended.err and "\x07" not in ended.err
    logging.getLogger("runner").warning("one\n[ERROR] two\x1b[2J")
    (log,) = tmp_path.rglob("runner.log")
    assert "\x1b" not in log.read_text() and not any(line.startswith("[ERROR]") for line in log.read_text().splitlines())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:pw@host/x", "http://user:***@host/x"),
        ("postgresql+psycopg://u:p@ss@h:5432/db", "postgresql+psycopg://u:***@h:5432/db"),
        ("sqlite:///outputs/mlflow.db", "sqlite:///outputs/mlflow.db"),
        ("a.password=x,seed=1", "a.password='***',seed=1"),
        ("API_KEY: 'x y'\nseed: 1", "API_KEY: '***'\nseed: 1"),
        ("token: ${oc.env:TOKEN}", "token: ${oc.env:TOKEN}"),
        ("max_tokens=5 learning_rate=0.1", "max_tokens=5 learning_rate=0.1"),
    ],
)
def test_what_is_masked(text, shown):
    assert secrets.masked(text) == shown


def test_plain_data_are_masked_by_key_and_by_value():
    plain = {"password": "x", "n": [1, {"api_key": 7, "u": "x://a:b@c"}], "token": None, "kind": "y"}
    assert secrets.hidden(plain) == {
        "password": "***",
        "n": [1, {"api_key": "***", "u": "x://a:***@c"}],
        "token": None,
        "kind": "y",
    }
