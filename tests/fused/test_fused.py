"""Jobs that run as one program come to what each comes to alone, and a probe keeps those apart that would not."""

from __future__ import annotations

import copy
import sys
from itertools import product
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import CONF
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from runner import loop, optimizers
from runner.cli.entry import PLUGINS
from runner.config import build, schema
from runner.executions.cache import Programs
from runner.fused import groups, lockstep
from runner.loop import Ending, Result
from runner.trace import Trace, join

OPTIMIZERS = [path.stem for path in sorted((CONF / "optimizer").glob("*.yaml")) if path.stem != "custom"]
# By their formulas: these step each number by itself, and those by a norm of all numbers, or by their place in a matrix.
ELEMENTWISE = {"sgd", "adam", "adamw", "rmsprop", "adagrad", "adadelta", "adamax", "nadam", "ftrl", "lion"}
COUPLED = {"lamb", "adafactor", "muon"}
TRACED = [0]
# What runs alone, for all tests.
KEPT = Programs()


@pytest.fixture(scope="module", autouse=True)
def plugins():
    """Let Hydra, which looks for plugins once a process, find the runner's own, which tests of other files need."""
    sys.path.append(str(PLUGINS))


@pytest.fixture(autouse=True)
def afresh(monkeypatch):
    """Begin without programs and outcomes of probes, and leave Keras's default dtype as it was."""
    monkeypatch.setattr(groups, "PROGRAMS", Programs())
    monkeypatch.setattr(groups, "FAULTS", {})
    before = keras.config.floatx()
    yield
    keras.config.set_floatx(before)


def jobs(*overrides: str, **grid: list[Any]) -> list[Any]:
    """Return the configurations of a grid over keys, in which __ stands for a dot."""
    schema.register()
    with initialize_config_dir(str(CONF), version_base=None):
        cfg = compose("config", overrides=["loss=rosenbrock", "guess=normal", *overrides])
    found = []
    for values in product(*grid.values()):
        found.append(copy.deepcopy(cfg))
        for key, value in zip(grid, values, strict=True):
            OmegaConf.update(found[-1], key.replace("__", "."), value)
    return found


def alone(cfgs: list[Any]) -> list[tuple[Trace, Result]]:
    """Return what each job comes to by itself."""
    found = []
    for cfg in cfgs:
        keras.config.set_floatx(cfg.dtype.name)
        loss = build.loss(cfg)
        x0 = build.guess(cfg.guess, loss, cfg.dtype.name, cfg.seed)
        x = tf.Variable(tf.constant(x0), name="x")
        optimizer = build.optimizer(cfg.optimizer, x)
        step = lambda: build.strategy(cfg.strategy, loss, optimizer, x)  # noqa: B023, E731
        make = lambda: build.execution(cfg.execution, step())  # noqa: B023, E731
        program = KEPT.get((build.depends_on(cfg, loss), x0.shape), x, optimizer, make)
        program.execution.last()
        rules, traces = build.rules(cfg.stopping, loss, cfg.max_iterations), []
        result = loop.run(program.execution, lambda: int(optimizers.steps(program.optimizer)), rules, [traces.append])  # noqa: B023
        found.append((join(traces), result))
    return found


def together(cfgs: list[Any]) -> tuple[list[groups.Group], list[tuple[Trace, Result]]]:
    """Return the groups of jobs, which must all be fused, and what each job comes to."""
    found = lockstep.groups(cfgs)
    results = {}
    for group in found:
        assert group.alone is None, group.alone
        results |= dict(zip(group.indices, lockstep.run(group), strict=True))
    assert sorted(results) == [*range(len(cfgs))]
    return found, [results[i] for i in range(len(cfgs))]


def same(one: tuple[Trace, Result], other: tuple[Trace, Result], tolerance: float = 0.0) -> None:
    """Assert that two runs end at the same row and for the same reason, and that their numbers are near, or equal."""
    (trace, result), (expected, reference) = one, other
    assert (result.ending, result.stopped_by) == (reference.ending, reference.stopped_by)
    assert (result.iterations, result.best.start) == (reference.iterations, reference.best.start)
    assert (trace.start, len(trace)) == (0, len(expected))
    pairs = [(trace, expected), (result.last, reference.last), (result.best, reference.best)]
    for mine, its in pairs:
        for part in ("x", "loss", "gradient"):
            a, b = getattr(mine, part), getattr(its, part)
            assert a.dtype == b.dtype and a.shape == b.shape
            size = np.abs(b[np.isfinite(b)]).max(initial=0)
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * size)


# A compiler orders the roundings of one lane and of many as it likes: 60 steps of them, each enlarged a hundred times by a
# curved valley, in which the jobs begin near the loss's start at rates that do not bounce off its walls.
TOLERANCE = {"float32": 60 * 100 * 6e-8, "float64": 60 * 100 * 1.1e-16}


@pytest.mark.parametrize(("loss", "dtype"), [("rosenbrock", "float64"), ("quadratic", "float32")])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_does_in_a_group_what_it_does_alone_or_is_kept_out(name, loss, dtype):
    cfgs = jobs(
        f"optimizer={name}",
        f"loss={loss}",
        f"dtype={dtype}",
        "max_iterations=60",
        seed=[1, 2],
        optimizer__learning_rate=[2e-5, 1e-4],
    )
    (group,) = lockstep.groups(cfgs)
    assert group.indices == (0, 1, 2, 3)
    if name in ELEMENTWISE:
        assert group.alone is None
    if name in COUPLED and loss == "rosenbrock":
        assert group.alone is not None
    if group.alone is None:
        for one, other in zip(lockstep.run(group), alone(cfgs), strict=True):
            same(one, other, TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("overrides", "kept_out"),
    [
        # A bound that is never reached alone is still a norm over all lanes.
        (["optimizer=sgd", "optimizer.clipnorm=1e9"], True),
        (["optimizer=adam", "optimizer.global_clipnorm=0.5"], True),
        (["optimizer=sgd", "optimizer.clipvalue=0.5"], False),
        (["optimizer=sgd", "optimizer.use_ema=true", "optimizer.ema_overwrite_frequency=3"], False),
        (["optimizer=sgd", "optimizer/learning_rate=cosine_decay"], False),
        (["optimizer=sgd", "optimizer.gradient_accumulation_steps=2"], False),
        # In single precision this moves x by 3e-7 of itself at a time, by which nothing could be told.
        (["optimizer=adadelta", "optimizer.learning_rate=0.001"], False),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, list) else "",
)
def test_the_probe_finds_what_couples_lanes(overrides, kept_out):
    cfgs = jobs(*overrides, "max_iterations=20", seed=[1, 2, 3])
    (group,) = lockstep.groups(cfgs)
    assert (group.alone is not None) == kept_out, group.alone
    if not kept_out:
        for one, other in zip(lockstep.run(group), alone(cfgs), strict=True):
            same(one, other, TOLERANCE["float32"])


def test_the_probe_finds_coupling_among_jobs_that_are_nearly_equal():
    rates = [1e-3, 1e-3 * (1 + 1e-6), 1e-3 * (1 + 2e-6)]
    cfgs = jobs("optimizer=lamb", "guess=standard", optimizer__learning_rate=rates)
    (group,) = lockstep.groups(cfgs)
    assert group.alone is not None and "departs" in group.alone


@pytest.mark.parametrize(
    ("name", "grid", "columns", "count"),
    [
        ("adam", {"beta_1": [0.8, 0.9], "epsilon": [1e-7, 1e-3]}, {"beta_1", "epsilon"}, 1),
        ("adam", {"beta_2": [0.99, 0.999]}, {"beta_2"}, 1),
        ("adamw", {"weight_decay": [0.004, 0.1]}, {"weight_decay"}, 1),
        ("adagrad", {"initial_accumulator_value": [0.1, 0.5]}, {"initial_accumulator_value"}, 1),
        # Keras asks `momentum != 0`, for which it wants a number; what else differs stays a column.
        ("sgd", {"momentum": [0.0, 0.9], "weight_decay": [0.004, 0.1]}, {"weight_decay"}, 2),
        ("sgd", {"clipnorm": [0.1, 0.2, 0.5]}, None, 1),
    ],
)
def test_other_hyperparameters_are_columns_where_keras_takes_them_and_keep_jobs_apart_where_not(name, grid, columns, count):
    grid = {f"optimizer.{key}": values for key, values in grid.items()}
    cfgs = jobs(
        f"optimizer={name}",
        "execution=graph",
        "optimizer.weight_decay=0.0",
        "max_iterations=60",
        seed=[1, 2],
        optimizer__learning_rate=[2e-5, 1e-4],
        **grid,
    )
    found = lockstep.groups(cfgs)
    assert len(found) == count
    if columns is None:
        assert found[0].alone is not None
        return
    assert {group.columns for group in found} == {("learning_rate", *sorted(columns))}
    for one, other in zip(together(cfgs)[1], alone(cfgs), strict=True):
        same(one, other, TOLERANCE["float32"])


def test_each_job_ends_at_its_own_row_and_one_that_diverges_disturbs_no_other():
    rules = ["stopping=[gradient_norm,plateau]", "stopping.gradient_norm.tolerance=1e-3"]
    cfgs = jobs(
        "loss=quadratic", *rules, "max_iterations=300", seed=[1, 2, 3], optimizer__learning_rate=[0.01, 0.1, 0.4, 1.6, 1e-4]
    )
    cfgs += jobs("loss=quadratic", "max_iterations=300", seed=[1, 2], optimizer__learning_rate=[0.02, 1.5])
    _, results = together(cfgs)
    for one, other in zip(results, alone(cfgs), strict=True):
        same(one, other)
    endings = {result.ending for _, result in results}
    assert endings == {Ending.CONVERGED, Ending.ITERATION_LIMIT, Ending.DIVERGED}
    assert len({result.iterations for _, result in results}) >= 7


def test_results_depend_neither_on_chunks_nor_on_how_many_lanes_go_on(monkeypatch):
    rules = ["stopping=[target,plateau]", "stopping.target.loss=5", "optimizer=adam"]
    cfgs = jobs(*rules, "max_iterations=300", seed=[*range(8)], optimizer__learning_rate=[0.3, 0.1, 0.03, 0.003])
    _, whole = together(cfgs)
    for cfg in cfgs:
        cfg.execution.chunk = 23
    monkeypatch.setattr(lockstep, "COMPILE_SECONDS", 1e9)
    _, in_chunks = together(cfgs)
    shapes = lambda: {program.x.shape[0] for program in groups.PROGRAMS.kept.values()}  # noqa: E731
    assert shapes() == {32}
    monkeypatch.setattr(lockstep, "COMPILE_SECONDS", 0.0)
    _, with_fewer = together(cfgs)
    assert shapes() == {32, 16, 8}
    for one, two, three in zip(whole, in_chunks, with_fewer, strict=True):
        same(two, one)
        # The compiler orders roundings otherwise for other numbers of lanes, and Adam may bounce: as above, over more steps.
        same(three, one, 300 * 100 * 6e-8)


def counted(x: tf.Tensor) -> tf.Tensor:
    """Count how often it is traced."""
    TRACED[0] += 1
    return tf.reduce_sum(tf.square(x), axis=-1)


def by_coordinates(x: tf.Tensor) -> tf.Tensor:
    """Take x[d] apart by its first axis, which of x[lanes, d] are lanes."""
    return tf.square(x[0]) + 2 * tf.square(x[1])


def centred(x: tf.Tensor) -> tf.Tensor:
    """Mix all lanes."""
    return tf.reduce_sum(tf.square(x - 0.5 * tf.reduce_mean(x)), axis=-1)


def noisy(x: tf.Tensor) -> tf.Tensor:
    """Differ at every call."""
    return tf.reduce_sum(tf.square(x + tf.random.normal(tf.shape(x))), axis=-1)


def own(loss: Any, dimension: int) -> list[str]:
    """Return the overrides that name a loss of this file."""
    return [f"loss._target_={__name__}.{loss.__name__}", f"loss.dimension={dimension}", "guess.mean=1.0"]


@pytest.mark.parametrize(("loss", "dimension"), [(by_coordinates, 2), (by_coordinates, 8), (centred, 3), (noisy, 2)])
def test_a_loss_that_does_not_broadcast_goes_one_by_one(loss, dimension):
    # Eight lanes of eight numbers: the shape alone would not tell.
    (group,) = lockstep.groups(jobs(*own(loss, dimension), seed=[*range(8)]))
    assert group.alone is not None and group.indices == (*range(8),)


def test_a_second_batch_probes_and_traces_nothing():
    cfgs = jobs(*own(counted, 2), "optimizer=adam", "max_iterations=20", seed=[*range(10)], optimizer__beta_1=[0.5, 0.8])
    together(cfgs)
    traced = TRACED[0]
    assert traced > 0
    others = jobs(*own(counted, 2), "optimizer=adam", "max_iterations=30", seed=[*range(10, 20)], optimizer__beta_1=[0.6, 0.7])
    for cfg in others:
        cfg.optimizer.learning_rate = 0.03
    _, results = together(others)
    assert TRACED[0] == traced
    for one, other in zip(results, alone(others), strict=True):
        same(one, other, TOLERANCE["float32"])


def test_groups_are_bounded_and_share_a_program(monkeypatch):
    cfgs = jobs(*own(counted, 2), "max_iterations=99", seed=[*range(50)])
    # 100 rows of 20 bytes a job: 17 jobs at a time.
    monkeypatch.setattr(groups, "GROUP_BYTES", 17 * 100 * 20)
    found, results = together(cfgs)
    assert [len(group.indices) for group in found] == [17, 17, 16] and len(groups.PROGRAMS.kept) == 1
    for one, other in zip(results, alone(cfgs), strict=True):
        same(one, other, TOLERANCE["float32"])
    monkeypatch.setattr(groups, "GROUP_BYTES", 7 * 100 * 20)
    (group,) = lockstep.groups(cfgs)
    assert "too large" in (group.alone or "")


def test_what_was_spent_is_shared_out():
    _, results = together(jobs("max_iterations=20", seed=[*range(5)]))
    (seconds,) = {tuple(sorted(result.seconds.items())) for _, result in results}
    assert [name for name, _ in seconds] == ["compile", "loop"] and all(value > 0 for _, value in seconds)


def test_a_signal_ends_all_that_have_not_ended_at_the_row_reached(monkeypatch):
    # The signal comes just after the others have got a program of fewer lanes.
    monkeypatch.setattr(lockstep, "COMPILE_SECONDS", 0.0)
    rate = "optimizer.learning_rate=0.05"
    cfgs = jobs("execution.chunk=20", "optimizer=adam", rate, "stopping=target", "stopping.target.loss=10", seed=[*range(16)])
    (group,) = lockstep.groups(cfgs)
    signals = iter([None, "SIGINT"])
    results = lockstep.run(group, lambda: next(signals))
    assert {program.x.shape[0] for program in groups.PROGRAMS.kept.values()} == {16, 8}
    interrupted = [i for i, (_, result) in enumerate(results) if result.ending is Ending.INTERRUPTED]
    assert 0 < len(interrupted) <= 8
    for i, (expected, _) in zip(interrupted, alone([cfgs[i] for i in interrupted]), strict=True):
        trace, result = results[i]
        assert (result.stopped_by, result.iterations, len(trace)) == ("SIGINT", 20, 21)
        np.testing.assert_allclose(trace.x, expected.x[:21], rtol=TOLERANCE["float32"])
        np.testing.assert_allclose(trace.loss, expected.loss[:21], rtol=TOLERANCE["float32"])


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["execution=eager"], "eager"),
        (["stopping=time_limit"], "time_limit"),
        (["strategy.intermediates=true", "strategy.persistent=true", "loss=quadratic"], "intermediate"),
        (["strategy.watch=false", "strategy.watch_accessed_variables=false"], "no gradient"),
        (["optimizer=custom", "optimizer._target_=tf_keras.optimizers.SGD"], "Keras 3"),
        (["optimizer.momentum=2.0"], "momentum"),
        (["guess=point", "guess.x=[1,2,3]"], "guess.x must be"),
        (["stopping=gradient_norm", "stopping.gradient_norm.tolerance=-1.0"], "tolerance"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_fused_says_why_and_spoils_nothing(overrides, why):
    cfgs = jobs(*overrides, "max_iterations=10", seed=[1, 2]) + jobs("max_iterations=10", seed=[1, 2])
    first, second = lockstep.groups(cfgs)
    assert first.indices == (0, 1) and why in (first.alone or "")
    assert second.indices == (2, 3) and len(lockstep.run(second)) == 2


def test_what_differs_otherwise_makes_groups():
    cfgs = [
        *jobs("max_iterations=10", seed=[1, 2]),
        *jobs("max_iterations=11", seed=[1, 2]),
        *jobs("max_iterations=10", "dtype=float64", seed=[1, 2]),
        *jobs("max_iterations=10", "optimizer.nesterov=true", seed=[1, 2]),
        *jobs("max_iterations=10", "guess=point", "guess.x=[1,2]", "tracking=none", seed=[1]),
        *jobs("max_iterations=10", "loss.dimension=3", seed=[1]),
    ]
    found = lockstep.groups(cfgs)
    assert [group.indices for group in found] == [(0, 1, 8), (2, 3), (4, 5), (6, 7), (9,)]
    assert found[-1].alone == "no other job is like it"


def test_the_betas_of_adam_are_columns_in_double_precision():
    betas = {"optimizer.beta_1": [0.8, 0.9], "optimizer.beta_2": [0.99, 0.999]}
    cfgs = jobs("optimizer=adam", "dtype=float64", "execution=graph", "max_iterations=60", seed=[1, 2], **betas)
    (group,) = lockstep.groups(cfgs)
    assert group.alone is None and set(group.columns) >= {"beta_1", "beta_2"}
    for one, other in zip(lockstep.run(group), alone(cfgs), strict=True):
        same(one, other, TOLERANCE["float64"])
