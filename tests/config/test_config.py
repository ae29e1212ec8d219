"""What a user may type wrong: one line that says where, what came and what is legal, and nothing created."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import yaml
from conftest import CONF, ROOT

# What is typed, and what the line must name.
MISTAKES = {
    "max_itr=5": ("max_itr", "max_iterations", "tracking"),
    "optimiser=adam": ("optimiser", "did you mean 'optimizer'"),
    "strategy=tapee": ("strategy", "'tapee'", "did you mean 'tape'", "minimize"),
    "loss=quadratik": ("loss", "quadratic", "rosenbrock"),
    "optimizer/learning_rate=cosine": ("optimizer/learning_rate", "cosine_decay", "polynomial_decay"),
    "optimizer.learnin_rate=0.1": ("optimizer.learnin_rate", "learning_rate", "momentum"),
    "strategy.persistant=true": ("strategy.persistant", "persistent", "watch_accessed_variables"),
    "loss.dimension=3": ("loss.dimension", "no key"),
    "max_iterations=abc": ("max_iterations", "'abc'", "Integer"),
    "max_iterations=1.5": ("max_iterations", "1.5", "Integer"),
    "max_iterations=0": ("max_iterations", "1 or more", "0"),
    "seed=-1": ("seed", "0 …", "-1"),
    "dtype=float16": ("dtype", "float16", "float32", "float64"),
    "optimizer.learning_rate=fast": ("optimizer.learning_rate", "number", "'fast'"),
    "optimizer.nesterov=1": ("optimizer.nesterov", "true or false", "1"),
    "strategy.persistent=maybe": ("strategy.persistent", "true or false", "'maybe'"),
    "tracking.every=2.5": ("tracking.every", "whole number", "2.5"),
    "guess=point": ("guess.x", "must be given"),
    "guess=point guess.x=[1,2": ("guess.x=[1,2", "key=value"),
    "strategy": ("'strategy'", "key=value"),
    "+mine=1": ("mine", "no key", "max_iterations"),
    "max_iterations=0 seed=-1 optimizer.learning_rate=fast": ("max_iterations", "seed", "optimizer.learning_rate"),
    # From here on TensorFlow is needed to tell.
    "+optimizer.learnin_rate=0.1": ("optimizer.learnin_rate", "SGD", "did you mean 'learning_rate'"),
    "optimizer._target_=keras.optimizers.Adm": ("optimizer._target_", "Adm"),
    "optimizer._target_=keras.losses.Huber": ("optimizer.", "Huber"),
    "optimizer.momentum=2": ("optimizer", "momentum"),
    "guess=point guess.x=[1,2]": ("guess.x", "dimension 0", "dimension 2"),
    "loss=booth guess=point guess.x=[1,2,3]": ("guess.x", "dimension 2", "dimension 3"),
    "loss=booth guess=point guess.x=1": ("guess.x", "dimension 2", "dimension 0"),
    "guess=point guess.x=here": ("guess.x", "'here'"),
    "guess=uniform guess.low=3 guess.high=2": ("guess.low", "guess.high"),
    "guess=normal guess.standard_deviation=-1.0": ("guess.standard_deviation", "-1"),
    "loss=rosenbrock loss.dimension=1": ("loss.dimension", "2 or more", "1"),
    "stopping=plateau stopping.plateau.patience=0": ("stopping.plateau.patience", "1 or more", "0"),
    "stopping=gradient_norm stopping.gradient_norm.tolerance=-1.0": ("stopping.gradient_norm.tolerance", "0 or more", "-1"),
    "stopping=target stopping.target.tolerance=null": ("stopping.target.loss", "stopping.target.tolerance"),
    "stopping=[gradient_norm,plateau] stopping.plateau.patience=many": ("stopping.plateau.patience", "whole number", "'many'"),
    "stopping.time_limit=0": ("stopping.time_limit", "above 0", "0"),
    "execution.chunk=0": ("execution.chunk", "1 or more", "0"),
    "tracking.every=0": ("tracking.every", "1 or more", "0"),
    "tracking.uri=foo://bar": ("tracking.uri", "foo://bar", "sqlite"),
    "strategy.intermediates=true": ("strategy.persistent=true", "non-persistent"),
    "strategy.terms=true": ("strategy.terms=true", "names none"),
    "strategy=scipy optimizer=adam": ("strategy=scipy", "no optimizer, got Adam", "leave optimizer out", "optimizer=none"),
    "optimizer=none": ("strategy=tape", "got none", "optimizer=sgd"),
    "strategy=newton optimizer.learning_rate=0.1": ("optimizer.learning_rate", "leave it out"),
    "strategy=newton optimizer/learning_rate=cosine_decay": ("optimizer.learning_rate", "leave it out"),
    "strategy=newton noise=gaussian": ("strategy=newton", "draws anew", "strategy=tape"),
    "strategy=gauss_newton loss=ackley": ("residuals", "strategy=newton"),
    "strategy=scipy strategy.method=Powell": ("strategy.method", "'Powell'", "L-BFGS-B", "trust-ncg"),
    "strategy=scipy strategy.options={gtl:1e-3}": ("strategy.options", "gtl", "L-BFGS-B"),
    "strategy.watch_accessed_variables=false strategy.watch=false": ("strategy.watch=true", "watches nothing"),
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_line_and_creates_no_run(cli, runs, words):
    ended = cli(*words.split())
    assert ended.code == 1
    assert ended.err.startswith("error: ") and ended.err.count("\n") == 1, ended.err
    for part in MISTAKES[words]:
        assert part in ended.err
    assert "Traceback" not in ended.out + ended.err
    assert runs() == []


def test_a_mistake_in_a_sweep_spoils_only_its_job(cli, runs):
    ended = cli("-m", "optimizer.learning_rate=0.1,fast,0.2", "max_iterations=2")
    assert ended.code == 1 and ended.err.count("\n") == 1
    assert [run.data.params["optimizer.learning_rate"] for run in runs()] == ["0.1", "0.2"]


def test_a_full_traceback_can_be_had(tmp_path):
    env = os.environ | {"PYTHONPATH": str(ROOT), "HYDRA_FULL_ERROR": "1"}
    command = [sys.executable, "-m", "runner", "max_itr=5"]
    ended = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and "Traceback" in ended.stderr and "max_itr" in ended.stderr


@pytest.mark.parametrize("words", ["--help", "--cfg job", "max_itr=5", "optimizer.learning_rate=fast"])
def test_what_the_configuration_tells_imports_nothing_heavy(tmp_path, words):
    code = (
        "import sys; from runner.cli import entry; sys.argv[1:] = sys.argv[1].split()\n"
        "try:\n    entry.main()\nexcept SystemExit:\n    pass\n"
        "print('heavy:', {'tensorflow', 'keras', 'mlflow', 'pandas', 'matplotlib', 'pyarrow'} & set(sys.modules))"
    )
    command, env = [sys.executable, "-c", code, words], os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert ended.stdout.endswith("heavy: set()\n")


def test_an_override_may_be_a_whole_number_for_a_float(cli, runs):
    assert cli("optimizer.learning_rate=1", "optimizer.momentum=0", "max_iterations=2").code == 0
    assert len(runs()) == 1


def test_the_same_seed_guesses_the_same_and_another_another(cli, runs):
    for seed in (0, 1, 0):
        assert cli("loss=ackley", "guess=uniform", f"seed={seed}", "max_iterations=1").code == 0
    first, other, again = (run.data.metrics["system/last_loss"] for run in runs())
    assert first == again != other


def test_float64_is_float64_throughout(cli, runs, tmp_path):
    assert cli("dtype=float64", "max_iterations=150").code == 0
    (run,) = runs()
    # float32 stops at a loss of 2.3e-13; x - 4 = -4 · 0.8^150 is 1.2e-14 and its square far below that.
    assert run.data.metrics["system/last_loss"] < 1e-27


def test_a_users_own_files_are_choices_beside_ours(cli, runs, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("def loss(x, *, height):\n    return height + (x[..., 0] - 1) ** 2 + x[..., 1] ** 2\n")
    (tmp_path / "conf/loss").mkdir(parents=True)
    (tmp_path / "conf/loss/mine.yaml").write_text("_target_: mine.loss\nheight: 2.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert cli("--config-dir", "conf", "loss=mine", "guess=point", "guess.x=[3,4]").code == 0
    (run,) = runs()
    assert run.data.metrics["system/last_loss"] == pytest.approx(2) and "system/loss_above_minimum" not in run.data.metrics
    ended = cli("--config-dir", "conf", "loss=mine", "guess=point", "guess.x=[3,4]", "+loss.hight=3")
    assert ended.code == 1 and "did you mean 'height'" in ended.err
    ended = cli("--config-dir", "conf", "loss=mine")
    assert ended.code == 1 and "guess=point" in ended.err


@pytest.mark.parametrize(
    ("file", "new"), [("tracking/mlflow", "max_unsent"), ("strategy/scipy", "tolerances"), ("stopping/target", "every")]
)
def test_a_users_copy_of_a_file_goes_on_working_when_the_group_gets_a_key(cli, runs, tmp_path, file, new):
    plain = yaml.safe_load((CONF / f"{file}.yaml").read_text())
    node = plain.get("target", plain)
    del node[new]
    (tmp_path / "conf" / file).parent.mkdir(parents=True)
    (tmp_path / "conf" / file).with_name("mine.yaml").write_text(yaml.safe_dump(plain))
    group = file.partition("/")[0]
    for words in ((), ("-m", "seed=1,2", "hydra/launcher=fused")):
        assert cli("--config-dir", "conf", *words, f"{group}=mine", "max_iterations=2", "report=none").code == 0
    assert len(runs()) == 3


def test_a_users_copy_of_newtons_file_may_name_the_shift_of_before(cli, runs):
    ended = cli("strategy=newton", "+strategy.shift=1e-3", "max_iterations=2", "report=none")
    assert ended.code == 0 and ended.err == "WARNING: strategy.shift has no effect any more; leave it out\n"
    assert len(runs()) == 1


def test_every_choice_says_what_it_is():
    for path in sorted(CONF.glob("*/**/*.yaml")):
        lines = path.read_text().splitlines()
        comment = lines[1] if lines[0].startswith("# @package") else lines[0]
        assert comment.startswith("# ") and len(comment) > 10, f"{path} begins with no comment that says what it is"
        assert yaml.safe_load(path.read_text()) is not None
