"""The table of bad inputs, each given as a file, on the command line and as a sweep's element: one line, and no run."""

from __future__ import annotations

import re
import time

import pytest
import yaml
from conftest import CONF, store

from runner.config import bounds

# By what is wrong: the key, its value, what else has to be chosen, and what the line must name.
TABLE = {
    "limit_negative": ("max_iterations", -5, "", ("max_iterations", "1 or more", "-5")),
    "limit_zero": ("max_iterations", 0, "", ("max_iterations", "1 or more", "0")),
    "limit_broken": ("max_iterations", 1.5, "", ("max_iterations", "1.5", "Integer")),
    "limit_word": ("max_iterations", "abc", "", ("max_iterations", "'abc'", "Integer")),
    "limit_null": ("max_iterations", None, "", ("max_iterations",)),
    "seed_negative": ("seed", -1, "", ("seed", "4294967295", "-1")),
    "seed_large": ("seed", 2**32, "", ("seed", "4294967295", "4294967296")),
    "dtype_half": ("dtype", "float16", "", ("dtype", "float16", "float32", "float64")),
    "dtype_double": ("dtype", "double64", "", ("dtype", "double64", "float32", "float64")),
    "rate_zero": ("optimizer.learning_rate", 0.0, "", ("optimizer.learning_rate", "finite", "above 0", "0.0")),
    "rate_negative": ("optimizer.learning_rate", -0.1, "", ("optimizer.learning_rate", "above 0", "-0.1")),
    "rate_nan": ("optimizer.learning_rate", float("nan"), "", ("optimizer.learning_rate", "finite", "nan")),
    "rate_infinite": ("optimizer.learning_rate", float("inf"), "", ("optimizer.learning_rate", "finite", "inf")),
    "rate_underflow": ("optimizer.learning_rate", 1e-50, "", ("optimizer.learning_rate", "1.2e-38", "1e-50", "dtype=float64")),
    "rate_overflow": ("optimizer.learning_rate", 1e40, "", ("optimizer.learning_rate", "3.4e+38", "1e+40", "dtype=float64")),
    "epsilon_underflow": ("optimizer.epsilon", 1e-50, "optimizer=adam", ("optimizer.epsilon", "1e-50", "dtype=float64")),
    "noise_underflow": ("noise.gradient", 1e-50, "noise=gaussian", ("noise.gradient", "1e-50", "dtype=float64")),
    "target_underflow": ("stopping.target.loss", 1e-50, "stopping=target", ("stopping.target.loss", "1e-50", "dtype=float64")),
    "x_underflow": ("guess.x", [1.0, 1e-50], "loss=booth guess=point", ("guess.x[1]", "1e-50", "dtype=float64")),
    "rate_word": ("optimizer.learning_rate", "0.1x", "", ("optimizer.learning_rate", "a number", "'0.1x'")),
    "beta": ("optimizer.beta_1", 2.0, "optimizer=adam", ("optimizer.beta_1", "[0, 1)", "2.0")),
    "momentum": ("optimizer.momentum", -1.0, "", ("optimizer.momentum", "[0, 1)", "-1.0")),
    "epsilon": ("optimizer.epsilon", -1.0, "optimizer=adam", ("optimizer.epsilon", "above 0", "-1.0")),
    "rho": ("optimizer.rho", 1.5, "optimizer=rmsprop", ("optimizer.rho", "[0, 1)", "1.5")),
    "weight_decay": ("optimizer.weight_decay", -0.1, "optimizer=adamw", ("optimizer.weight_decay", "0 or more", "-0.1")),
    "clipnorm": ("optimizer.clipnorm", 0.0, "", ("optimizer.clipnorm", "above 0", "0.0")),
    "schedule": (
        "optimizer.learning_rate.initial_learning_rate",
        -1.0,
        "optimizer/learning_rate=cosine_decay",
        ("optimizer.learning_rate.initial_learning_rate", "0 or more", "-1.0"),
    ),
    "schedule_steps": (
        "optimizer.learning_rate.decay_steps",
        0,
        "optimizer/learning_rate=cosine_decay",
        ("optimizer.learning_rate.decay_steps", "1 or more", "0"),
    ),
    "x_nan": ("guess.x", [1.0, float("nan")], "loss=booth guess=point", ("guess.x", "finite", "nan")),
    "x_infinite": ("guess.x", [1.0, float("inf")], "loss=booth guess=point", ("guess.x", "finite", "inf")),
    "x_short": ("guess.x", [1.0], "loss=booth guess=point", ("guess.x", "dimension 2", "dimension 1")),
    "x_empty": ("guess.x", [], "loss=booth guess=point", ("guess.x", "[]")),
    "x_ragged": ("guess.x", [[1.0], [1.0, 2.0]], "loss=booth guess=point", ("guess.x", "flat list")),
    "x_words": ("guess.x", ["a", "b"], "loss=booth guess=point", ("guess.x", "flat list", "'a'")),
    "bounds_crossed": ("guess.low", 3, "guess=uniform guess.high=2", ("guess.low", "guess.high", "3", "2")),
    "bounds_long": ("guess.low", [1, 2, 3], "loss=booth guess=uniform", ("guess.low", "dimension 2", "[1, 2, 3]")),
    "tolerance_fine": (
        "stopping.gradient_norm.tolerance",
        1e-12,
        "stopping=gradient_norm",
        ("stopping.gradient_norm.tolerance", "float32 resolves", "1e-12", "dtype=float64"),
    ),
    "tolerance_negative": (
        "stopping.gradient_norm.tolerance",
        -1.0,
        "stopping=gradient_norm",
        ("stopping.gradient_norm.tolerance", "0 or more", "-1.0"),
    ),
    "target_forbidden": (
        "loss._target_",
        "os.system",
        "",
        ("loss._target_", "'os.system'", "is not allowed", "--allow-target os"),
    ),
    "target_absent": ("loss._target_", "runner.losses.rosenbrok", "", ("loss._target_", "rosenbrok")),
    "target_no_function": ("loss._target_", "askew.number", "", ("loss._target_", "'askew.number'", "int")),
    "target_broken": ("loss._target_", "bad.loss", "", ("loss._target_", "'bad.loss'", "SyntaxError")),
    "loss_vector": ("loss._target_", "askew.vector", "", ("loss", "one number", "(2,)")),
    "loss_float": ("loss._target_", "askew.float_", "", ("loss", "tf.Tensor", "float")),
    "loss_none": ("loss._target_", "askew.none", "", ("loss", "tf.Tensor", "NoneType")),
    "loss_numpy": ("loss._target_", "askew.numpy", "execution=eager", ("loss", "tf.Tensor", "float64")),
    "loss_constant": ("loss._target_", "askew.constant", "", ("loss", "no gradient")),
    "loss_rounded": ("loss._target_", "askew.rounded", "", ("loss", "no gradient")),
    "loss_complex": ("loss._target_", "askew.complex_", "", ("loss", "float32", "complex64")),
    "loss_integer": ("loss._target_", "askew.integer", "", ("loss", "float32", "int32")),
    "reference_circular": ("optimizer.momentum", "${optimizer.momentum}", "", ("optimizer.momentum",)),
    "reference_nowhere": ("optimizer.momentum", "${nowhere}", "", ("nowhere",)),
}
# What Hydra cannot compose stops a sweep before its first job.
CHOICES = {
    "optimizer=sgdd": ("optimizer", "did you mean 'sgd'", "adam"),
    "strategy=tapes": ("strategy", "did you mean 'tape'", "minimize"),
    "stopping=[plato]": ("stopping", "plateau", "gradient_norm"),
    "loss=rozenbrock": ("loss", "did you mean 'rosenbrock'"),
    "max_itr=5": ("max_itr", "did you mean 'max_iterations'"),
    "optimizer.learnin_rate=0.1": ("optimizer.learnin_rate", "did you mean 'learning_rate'"),
}
LOSSES = """
import tensorflow as tf
number = 7
def vector(x): return tf.stack([x, x])
def float_(x): return 1.0
def none(x): return None
def numpy(x): return x.numpy() * x.numpy() * __import__("numpy").ones(())
def constant(x): return tf.constant(1.0)
def rounded(x): return tf.round(x)
def complex_(x): return tf.cast(x, tf.complex64)
def integer(x): return tf.cast(x, tf.int32)
"""


@pytest.fixture
def losses(tmp_path, monkeypatch):
    (tmp_path / "askew.py").write_text(LOSSES)
    (tmp_path / "bad.py").write_text("def loss(x): return x +* 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("askew", "bad"):
        monkeypatch.delitem(__import__("sys").modules, name, raising=False)


def typed(value) -> str:
    """Return a value as an override has it."""
    return "null" if value is None else re.sub(r"[' ]", "", str(value))


def is_told(line: str, parts) -> bool:
    return all(part in line for part in parts) and "Traceback" not in line


@pytest.mark.parametrize("name", TABLE)
# Of a sweep, test_config has it that a mistake spoils only its job.
@pytest.mark.parametrize("way", ["override", *(pytest.param(way, marks=pytest.mark.long) for way in ("file", "sweep"))])
def test_a_bad_value_is_told_in_one_line_and_leaves_no_run(cli, runs, losses, tmp_path, way, name):
    key, value, others, parts = TABLE[name]
    words = [*others.split(), f"{key}={typed(value)}"]
    if name.startswith(("loss_", "target_")):
        words += ["guess=point", "guess.x=3.5"]
    if way == "file":
        nested = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        (tmp_path / "conf/experiment").mkdir(parents=True)
        (tmp_path / "conf/experiment/wrong.yaml").write_text("# @package _global_\n" + yaml.safe_dump(nested))
        words = ["--config-dir", "conf", "experiment=wrong", *(word for word in words if not word.startswith(f"{key}="))]
    if way == "sweep":
        words = ["-m", *words]
        words[words.index(f"{key}={typed(value)}")] += "," + ("1" if key == "max_iterations" else typed(value))
    ended = cli(*words)
    assert ended.code == 1, ended
    assert ended.err.startswith("error: ") and ended.err.count("\n") == 1, ended.err
    lines = ended.err.splitlines() + [line for line in ended.out.splitlines() if "failed" in line]
    assert any(is_told(line, parts) for line in lines), lines
    assert "Traceback" not in ended.out
    # What is of another type, Hydra does not compose, and begins no job.
    others = ["1"] if way == "sweep" and key == "max_iterations" and isinstance(value, int) else []
    assert [run.data.params["max_iterations"] for run in runs()] == others


@pytest.mark.parametrize("words", CHOICES)
@pytest.mark.parametrize("mode", [(), ("-m",)], ids=["run", "sweep"])
def test_a_bad_choice_is_told_in_one_line_before_anything_begins(cli, runs, mode, words):
    ended = cli(*mode, words + ("," + words.partition("=")[2] if mode else ""), "tracking.experiment=never")
    assert ended.code == 1 and ended.err.startswith("error: ") and ended.err.count("\n") == 1, ended.err
    assert is_told(ended.err, CHOICES[words])
    assert runs() == []


def test_whole_numbers_are_cast(cli, runs):
    assert cli("loss=booth", "guess=point", "guess.x=[1,2]", "max_iterations=1").code == 0
    assert len(runs()) == 1


def test_a_loss_that_is_not_finite_at_the_guess_diverges_at_once(cli, runs):
    assert cli("guess=point", "guess.x=1e30").code == 0
    (run,) = runs()
    assert run.data.tags["ending"] == "diverged" and run.data.tags["first_nonfinite_step"] == "0"


# A file of the user's that is no configuration.
FILES = {
    "key_twice": ("seed: 1\nseed: 2\n", ("seed",)),
    "tab": ("optimizer:\n\tmomentum: 0.5\n", ("wrong.yaml", "line 3")),
    "not_utf8": (b"seed: 1 # \xff\n", ("wrong.yaml", "utf-8")),
    "unclosed": ("optimizer: {momentum: 0.5\n", ("wrong.yaml",)),
    "octal": ("optimizer: {nesterov: 010}\n", ("optimizer.nesterov", "true or false")),
    "on": ("max_iterations: on\n", ("max_iterations",)),
    "list": ("- 1\n- 2\n", ("wrong",)),
    "alias_bomb": (
        "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
        ("wrong.yaml", "10000 values"),
    ),
    "deep": ("loss: " + "[" * 2000 + "]" * 2000 + "\n", ("wrong.yaml", "nest")),
    "wide": ("loss: {x: [" + "1," * 20_000 + "1]}\n", ("wrong.yaml", "10000 values")),
    "large": ("# " + "x" * 2**20 + "\nseed: 1\n", ("wrong.yaml", "1 MiB")),
}


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_is_told_in_one_line_and_at_once(cli, runs, tmp_path, name):
    content, parts = FILES[name]
    content = content.encode() if isinstance(content, str) else content
    (tmp_path / "conf/experiment").mkdir(parents=True)
    (tmp_path / "conf/experiment/wrong.yaml").write_bytes(b"# @package _global_\n" + content)
    began = time.perf_counter()
    ended = cli("--config-dir", "conf", "experiment=wrong")
    assert time.perf_counter() - began < 20
    assert ended.code == 1 and ended.err.startswith("error: ") and ended.err.count("\n") == 1, ended.err
    assert is_told(ended.err, parts) and len(ended.err) < 1000, ended.err
    assert runs() == []


@pytest.mark.parametrize("name", ["", "a\nb", "a\x1b[31mb", "x" * 251, "a\x00b"])
@pytest.mark.parametrize("key", ["name", "experiment"])
def test_a_name_that_no_page_could_show_is_told(cli, runs, tmp_path, key, name):
    (tmp_path / "conf/experiment").mkdir(parents=True)
    (tmp_path / "conf/experiment/wrong.yaml").write_text("# @package _global_\n" + yaml.safe_dump({"tracking": {key: name}}))
    ended = cli("--config-dir", "conf", "experiment=wrong")
    assert ended.code == 1 and ended.err.count("\n") == 1, ended.err
    assert ended.err.startswith(f"error: tracking.{key} must be") and "\x1b" not in ended.err
    assert runs() == []


def test_names_that_look_like_something_else_are_only_names(cli, runs, tmp_path):
    names = ["../../x", "/etc/x", "<script>alert(1)</script>", "=1+1"]
    for name in names:
        assert cli(f"tracking.name='{name}'", "max_iterations=1").code == 0
    assert [run.info.run_name for run in runs()] == names
    assert {path.name for path in tmp_path.iterdir()} == {"outputs"}


@pytest.mark.parametrize(
    "words",
    [("hydra.run.dir=file",), ("hydra.run.dir=file/below",), ("tracking.pending=file",), ("-m", "hydra.sweep.dir=file")],
)
def test_a_file_where_a_folder_should_be_is_told_and_stays(cli, runs, tmp_path, words):
    (tmp_path / "file").write_text("mine")
    ended = cli(*words, "max_iterations=2", *(["seed=1,2"] if "-m" in words else []))
    assert ended.code == 1 and ended.err.startswith("error: ") and ended.err.count("\n") == 1, ended.err
    assert "file" in ended.err and (tmp_path / "file").read_text() == "mine" and runs() == []


def test_every_number_of_an_optimizer_in_conf_is_within_its_range():

    for path in [*(CONF / "optimizer").glob("*.yaml"), *(CONF / "optimizer/learning_rate").glob("*.yaml")]:
        node = yaml.safe_load(path.read_text())
        assert list(bounds.of_optimizer(path.stem, node)) == []
        node.pop("_target_")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["seed=1,2", "hydra.launcher.n_jobs=0", "hydra/launcher=joblib"], ("hydra.launcher.n_jobs", "1 …", "0")),
        (["seed=1,2", "hydra.launcher.n_jobs=1000", "hydra/launcher=joblib"], ("hydra.launcher.n_jobs", "1 …", "1000")),
        (["seed="], ("seed",)),
        (["seed=range(0,0)"], ("0 jobs",)),
        (["seed=range(0,200000)"], ("jobs",)),
    ],
)
def test_a_bad_sweep_is_told_in_one_line(cli, tmp_path, words, parts):
    ended = cli("-m", "max_iterations=1", *words)
    assert ended.code == 1 and ended.err.startswith("error: ") and ended.err.count("\n") == 1, ended.err
    assert is_told(ended.err, parts), ended.err
    client = store(tmp_path)
    # Nor one that stands for the sweep.
    assert client.search_runs([each.experiment_id for each in client.search_experiments()]) == []
