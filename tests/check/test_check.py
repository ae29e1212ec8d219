"""`python -m runner.check` passes what keeps the contract, and finds each way of breaking it, with what to do."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import CONF
from hydra import compose, initialize_config_dir
from test_fused import afresh, plugins  # noqa: F401 (fixtures)

from runner.check import differences
from runner.check.checks import CHECKS
from runner.check.findings import FAILED, OK, SKIPPED, Finding, findings
from runner.config import schema
from runner.losses import Loss, known

ALL = {check.__name__ for check in CHECKS}


def of(*words: str) -> dict[str, Finding]:
    """Return what each check comes to."""
    schema.register()
    with initialize_config_dir(str(CONF), version_base=None):
        cfg = compose("config", overrides=[*words])
    return {finding.check: finding for finding in findings(cfg, CHECKS)}


def no_tensor(x):
    return 1.0


def a_vector(x):
    return tf.square(x)


def infinite(x):
    return tf.reduce_sum(tf.math.log(x - 3), axis=-1)


def steep(x):
    return tf.sqrt(tf.reduce_sum(tf.square(x - 3), axis=-1))


def single(x):
    return tf.reduce_sum(tf.square(tf.cast(x, tf.float32)), axis=-1)


def unseeded(x):
    return random.random() * tf.reduce_sum(tf.square(x), axis=-1)


def through_integers(x):
    return tf.reduce_sum(tf.cast(tf.cast(x, tf.int32), x.dtype), axis=-1)


def wrongly_derived(x):
    """Whose derivative along x/1, tiny beside the other one, is half of what it is."""

    @tf.custom_gradient
    def half(z):
        return tf.square(z), lambda dy: dy * z

    return 1e3 * tf.square(x[..., 0]) + half(x[..., 1])


def of_one_x(x):
    return tf.square(x[0]) + tf.square(x[1])


def mixed(x):
    return tf.square(x[..., 0]) + tf.square(x[..., 1]) * tf.reduce_max(x) ** 2


def in_python(x):
    return tf.reduce_sum(tf.square(x), axis=-1) if float(tf.reduce_sum(x)) > 0 else tf.reduce_sum(x, axis=-1)


def without_xla(x):
    rounded = tf.strings.to_number(tf.strings.as_string(tf.stop_gradient(x[..., 0]), precision=0), x.dtype)
    return 0 * rounded + tf.reduce_sum(tf.square(x), axis=-1)


def two(**facts):
    return known(dimension=2, domain=(-5.0, 5.0), start=3.0, **facts)


@two(minimisers=[[1.0, 0.0]], minimum=0.0)
def elsewhere(x):
    return tf.reduce_sum(tf.square(x), axis=-1)


@two(minimisers=0.0, minimum=-1.0)
def not_so_low(x):
    return tf.reduce_sum(tf.square(x), axis=-1)


@two(minimisers=0.0, minimum=0.0)
def lower_elsewhere(x):
    return -tf.reduce_sum(tf.square(x), axis=-1)


class Stuck(keras.optimizers.SGD):
    """An optimizer that cannot take a step."""

    def update_step(self, gradient, variable, learning_rate):
        raise ZeroDivisionError("no step")


AT = ("guess=point", "guess.x=[3,3]")
# What breaks the contract: what fails, and what its line must name.
BROKEN = {
    "no_tensor": ({"one_number"}, ("float", "TensorFlow's operations")),
    "a_vector": ({"one_number"}, ("x is [2] and the loss [2]", "axis=-1")),
    "infinite": ({"finite"}, ("-inf", "guess.x")),
    "steep": ({"finite"}, ("gradient is not finite",)),
    "single": ({"keeps_dtype"}, ("x is float64 and the loss float32", "x.dtype")),
    "unseeded": ({"repeats"}, ("seed", "stateless")),
    "through_integers": ({"finite"}, ("no gradient",)),
    "wrongly_derived": ({"gradient"}, ("along x/1", "by differences", "custom_gradient")),
    "of_one_x": ({"broadcasts"}, ("x of [1, 5, 2] is refused", "x[..., i]")),
    "mixed": ({"broadcasts"}, ("that of each", "axis=-1")),
    "in_python": ({"traces", "compiles", "steps"}, ("execution=eager",)),
    "without_xla": ({"compiles", "steps"}, ("XLA cannot", "execution=graph")),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_loss_is_found(name: str) -> None:
    failing, parts = BROKEN[name]
    found = of(f"loss._target_=test_check.{name}", *AT)
    assert found.keys() == ALL
    assert {each.check for each in found.values() if each.verdict == FAILED} == failing, found
    texts = " ".join(found[check].text for check in failing)
    assert all(part in texts for part in parts), texts
    assert all("\n" not in each.text for each in found.values())


@pytest.mark.parametrize(
    "name, part", [("elsewhere", "`minimisers`"), ("not_so_low", "`minimum`"), ("lower_elsewhere", "below the minimum")]
)
def test_a_minimum_that_is_none_is_found(name: str, part: str) -> None:
    found = of(f"loss._target_=test_check.{name}")
    assert [each.check for each in found.values() if each.verdict == FAILED] == ["minimum"]
    assert part in found["minimum"].text


def test_what_an_execution_cannot_do_is_no_fault_of_a_loss_that_is_run_by_another() -> None:
    found = of("loss._target_=test_check.without_xla", "execution=graph", *AT)
    assert found["compiles"].verdict == SKIPPED and {each.verdict for each in found.values()} == {OK, SKIPPED}, found
    found = of("execution=eager")
    assert {name for name, each in found.items() if each.verdict == SKIPPED} == {"traces", "compiles", "separable"}


@pytest.mark.parametrize(
    "words, fails",
    [
        (["loss=rosenbrock", "optimizer=lamb"], {"separable"}),
        (["loss=rosenbrock", "optimizer=custom", "optimizer._target_=test_check.Stuck"], {"steps"}),
        (["loss=branin", "noise=gaussian", "instance=random", "optimizer=adam"], set()),
        (["loss=ackley", "loss.dimension=40", "dtype=float64"], set()),
        # Which says that it takes one x at a time, and in whose layers every number has to be of the dtype.
        (["loss=keras_model"], set()),
    ],
)
def test_our_own_pass_and_what_joins_numbers_of_x_is_not_separable(words: list[str], fails: set[str]) -> None:
    found = of(*words)
    assert {each.check for each in found.values() if each.verdict == FAILED} == fails, found
    skipped = {each.check for each in found.values() if each.verdict == SKIPPED}
    assert skipped <= {"minimum", "separable", *(["broadcasts"] if words == ["loss=keras_model"] else [])}, found


def test_differences_tell_a_gradient_that_is_right_from_one_that_is_nearly() -> None:
    x = np.array([0.7, -1.3])
    for scale in (1e-6, 1.0, 1e9):
        right = Loss(lambda x, scale=scale: scale * tf.reduce_sum(tf.exp(3 * x) - x**5), (2,))
        assert differences.fault(right, x) is None

        @tf.custom_gradient
        def nearly(x, right=right):
            return right(x), lambda dy: dy * differences.tensors(right, x)[1] * (1 + 1e-3)

        assert "by differences" in str(differences.fault(nearly, x))
    # Where the loss bends, differences say nothing of the derivative on one side.
    assert differences.fault(lambda x: tf.reduce_sum(tf.abs(x)), np.zeros(2)) is None
    assert differences.fault(lambda x: tf.reduce_sum(tf.math.log(x)), np.full(2, -1.0)) is False


@pytest.fixture
def check(cli, monkeypatch, capfd):
    """Run `python -m runner.check` with these words in this process, in the folder of `cli`."""

    def run(*words: str) -> tuple[int, list[str], str]:
        from runner.check import command

        monkeypatch.setattr(sys, "argv", ["runner.check", *words])
        code = command.main()
        out, err = capfd.readouterr()
        return code, out.splitlines(), err

    return run


def test_the_command_prints_a_line_a_check_and_its_code_says_whether_one_failed(
    check, runs, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "conf/loss").mkdir(parents=True)
    (tmp_path / "stranger.py").write_text("def loss(x, *, height):\n    return height + x[..., 0] ** 2 + x[..., 1] ** 4\n")
    (tmp_path / "conf/loss/stranger.yaml").write_text("_target_: stranger.loss\nheight: 2.0\n")
    words = ("--config-dir", "conf", "loss=stranger", "guess=point", "guess.x=[3,1]")
    code, lines, err = check(*words)
    assert code == 0 and err == "" and len(lines) == len(ALL) + 1 and lines[-1] == "nothing failed"
    assert lines[0].split(": ") == ["ok       one_number", "the loss is 12 at the guess"]
    code, lines, err = check(*words, "optimizer.clipnorm=1.0")
    assert code == 1 and err == "" and lines[-1] == "1 failed"
    assert lines[-2].startswith("FAILED   separable: ") and "hydra/launcher=fused" in lines[-2]
    assert runs() == []


@pytest.mark.parametrize(
    "words, parts",
    [
        (["loss=quadratik"], ("did you mean 'quadratic'",)),
        (["max_itr=3"], ("max_itr", "max_iterations")),
        (["+loss.hight=3"], ("loss.hight",)),
        (["guess=point", "guess.x=[1,2]"], ("guess.x", "dimension 0")),
        (["-m", "optimizer=sgd,adam"], ("leave out -m",)),
    ],
)
def test_a_mistake_is_one_line(check, words: list[str], parts: tuple[str, ...]) -> None:
    code, lines, err = check(*words)
    assert code == 1 and lines == [] and err.startswith("error: ") and err.count("\n") == 1
    assert all(part in err for part in parts), err
