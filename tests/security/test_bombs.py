"""Small texts that stand for more than any memory or disk holds: one line each, at once, before anything is made."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import environment
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.config import grammar, schema

ALIASES = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdef", "bcdefg", strict=True)
)
TEN = range(10)
NODES: dict[str, object] = {"a0": {f"k{i}": 1 for i in TEN}}
NODES |= {f"a{i + 1}": {f"k{j}": f"${{loss.a{i}}}" for j in TEN} for i in range(8)}
TEXTS = {"s0": "0123456789", **{f"s{i + 1}": f"${{loss.s{i}}}" * 10 for i in range(8)}}
NAMED = {f"n{i}": f"a{i}" for i in TEN} | json.loads(re.sub(r"\{loss.a(\d)", r"{loss.${loss.n\1}", json.dumps(NODES)))
LONG = {"a": "x" * 500_000}
# What a file of an experiment says, and what the line that refuses it names.
FILES = {
    "aliases": (ALIASES, "wrong.yaml must stand for 10000 values or less"),
    "megabytes": ("# " + "x" * 3 * 2**20 + "\n", "wrong.yaml must be 1 MiB or less"),
    "values": ("loss: {x: [" + "1," * 30_000 + "1]}\n", "wrong.yaml must stand for 10000 values or less"),
    "nodes": ({"loss": NODES}, "a configuration must come to"),
    "texts": ({"loss": TEXTS}, "1000 interpolations or less"),
    "long_text": ({"loss": {**LONG, "b": "${loss.a}" * 5}}, "characters by interpolation"),
    "by_resolver": ({"loss": {**LONG, "b": "${oc.select:loss.a}" * 5}}, "characters by interpolation"),
    "many": ({"loss": {"a": "${seed}" * 100_000}}, "wrong.yaml must hold 1000 interpolations or less"),
    "one_in_another": ({"loss": {"a": "${" * 500 + "seed" + "}" * 500}}, "error: "),
    "by_names": ({"loss": NAMED}, "a configuration must come to"),
    "in_hydra": ({"loss": TEXTS, "hydra": {"job": {"env_copy": ["${loss.s8}"]}}}, "1000 interpolations or less"),
    "in_itself": ({"loss": {"a": {"b": "${loss.c}"}, "c": {"d": "${loss.a}"}}}, "a configuration must"),
}


def written(folder: Path, name: str, content: object) -> None:
    """Write an experiment of this name into a folder."""
    (folder / "conf/experiment").mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else yaml.safe_dump(content)
    (folder / f"conf/experiment/{name}.yaml").write_text("# @package _global_\n" + text)


# Words of a command, and what the line names.
COMMANDS = {
    "range": (["-m", "seed=range(0,400000000)"], "1 to 100000 jobs, got 400000000 jobs"),
    "range_of_floats": (["-m", "optimizer.learning_rate=range(0.1,1,1e-9)"], "1 to 100000 jobs, got 9000000"),
    "range_beyond_words": (["-m", "seed=range(0,1000000000000000000000000000000)"], "1 to 100000 jobs"),
    "range_without_end": (["-m", "seed=range(0,10,0)"], "seed=range(0,10,0): a range needs"),
    "range_to_infinity": (["-m", "optimizer.learning_rate=range(0.1,inf)"], "a range needs a finite start and stop"),
    "shuffled": (["-m", "seed=shuffle(range(0,400000000))"], "got 400000000 jobs"),
    "product": (["-m", *(f"+loss.k{i}=range(0,99999)" for i in range(9))], "1 to 100000 jobs"),
    "logspace": (["-m", "optimizer.learning_rate=logspace(-4,0,400000000)"], "1 to 100000, got 400000000"),
    "linspace": (["optimizer.learning_rate=linspace(0,1,400000000)"], "1 to 100000, got 400000000"),
    "limit": (["max_iterations=1000000000000000000000"], "max_iterations must be 1 or more, and 9007199254740992 or less"),
    "limit_of_words": ([f"max_iterations={2**63 - 1}"], "max_iterations must be 1 or more, and 9007199254740992 or less"),
    "limit_of_floats": (["max_iterations=1e300"], "max_iterations must be 1 or more, and 9007199254740992 or less"),
    "whole_number": (["tracking.every=100000000000000000000"], "tracking.every must be in -2^63 … 2^63 - 1"),
    "trials": (["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=10000000000", "seed=1,2"], "n_trials must be"),
    "trials_of_floats": (["-m", "hydra/sweeper=optuna", "optimizer.learning_rate=range(0.1,1,1e-9)"], "100000 values or less"),
}
# Seconds of a processor that others use too; without a bound each of these takes minutes.
AT_ONCE = 6.0


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_stands_for_too_much_is_refused_at_once(cli, runs, tmp_path, name):
    content, part = FILES[name]
    written(tmp_path, "wrong", content)
    refused(cli, runs, ["--config-dir", "conf", "experiment=wrong"], part)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_stands_for_too_much_is_refused_at_once(cli, runs, name):
    refused(cli, runs, *COMMANDS[name])


def refused(cli, runs, words, part):
    began = time.process_time()
    ended = cli(*words)
    took = time.process_time() - began
    assert ended.code == 1 and ended.err.startswith("error: ") and ended.err.count("\n") == 1, ended
    assert part in ended.err and len(ended.err) < 1000, ended.err
    assert took < AT_ONCE
    assert runs() == [] and ended.out == ""


def test_what_the_words_of_a_sweep_come_to_is_counted_too(cli, runs):
    ended = cli("-m", "seed=1,2", *(f"+loss.{key}='{value}'" for key, value in TEXTS.items()))
    assert ended.code == 1 and "1000 interpolations or less" in ended.err and ended.err.count("\n") == 1 and runs() == []


NUMBERS = st.integers(-50, 50) | st.floats(-5, 5).filter(lambda value: value == 0 or abs(value) > 1e-3)


@settings(max_examples=200, deadline=None)
@given(start=NUMBERS, stop=NUMBERS, step=NUMBERS.filter(lambda value: abs(value) > 1e-2))
def test_values_are_counted_as_they_come(start, stop, step):
    (override,) = OverridesParser.create().parse_overrides([f"seed=range({start!r},{stop!r},{step!r})"])
    assert grammar.size(override) == len(grammar.strings(override))


@pytest.mark.parametrize(("typed", "whole"), [("1e1", 10), ("3.0", 3), ("3", 3)])
def test_a_float_that_is_a_whole_number_is_taken_as_one(cli, runs, typed, whole):
    assert cli(f"max_iterations={typed}", f"seed={typed}").code == 0
    assert cli("-m", f"max_iterations={typed}", f"seed={typed},7e0", "sweep.pack=1e0").code == 0
    assert [(run.data.params["max_iterations"], run.data.params["seed"]) for run in runs()] == [
        (str(whole), str(whole)),
        (str(whole), "7"),
    ]


def test_a_float_that_is_none_is_refused(cli):
    for typed in ("1.5", "inf", "nan", "true", "abc"):
        ended = cli(f"max_iterations={typed}")
        assert ended.code == 1 and ended.err.count("\n") == 1 and "max_iterations" in ended.err, ended


# By the function of schema.register that sets a guard: words that only it stops, or makes right, and what is then told.
GUARDED = {
    "grammar.extend": (["optimizer.learning_rate=logspace(0,1,0)"], "the number of values must be 1 to 100000"),
    "hydra_node.guard": (["hydra.launcher._target_=os.system"], "hydra.launcher._target_"),
    "yaml_limits.guard": (["--config-dir", "conf", "experiment=large"], "large.yaml must be 1 MiB or less"),
    "expansion.guard": (["--config-dir", "conf", "experiment=nodes"], "a configuration must come to"),
    "secrets.guard": (["max_iterations=1", "tracking=none", "++report.token=SECRETPW", "hydra.run.dir=run", "seed=-1"], "seed"),
    "origins.guard": (["hydra.run.dir=taken", "tracking=none"], "set hydra.run.dir=another folder"),
    "take_whole_floats": (["max_iterations=-1e1"], "max_iterations must be 1 or more, and 9007199254740992 or less, got -10;"),
}
CODE = """
import json, sys
from hydra.core.plugins import Plugins
from runner.cli import entry
from runner.config import schema
schema.register()
sys.path.append(str(entry.PLUGINS))
# Hydra's scan makes the classes of its own plugins anew.
Plugins.instance()
schema.register = lambda: None
for name, words in json.loads(sys.argv[1]).items():
    sys.argv = ["runner", *words]
    print(name, file=sys.stderr)
    assert entry.main() == 1
"""


def test_every_guard_holds_in_a_process_where_nothing_was_loaded_before(tmp_path):
    written(tmp_path, "large", FILES["megabytes"][0])
    written(tmp_path, "nodes", FILES["nodes"][0])
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/runner.log").write_text("another's")
    words = json.dumps({name: each for name, (each, _) in GUARDED.items()})
    command = [sys.executable, "-c", CODE, words]
    ended = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=500, check=False)
    lines = ended.stderr.splitlines()
    assert ended.returncode == 0 and lines[::2] == [*GUARDED], ended.stderr
    for line, (name, (_, part)) in zip(lines[1::2], GUARDED.items(), strict=True):
        assert line.startswith("error: ") and part in line, (name, line)
    assert "'***'" in Path(tmp_path, "run/.hydra/overrides.yaml").read_text()


def test_no_guard_goes_without():
    body = ast.parse(inspect.getsource(schema.register)).body[0]
    calls = {ast.unparse(node.func) for node in ast.walk(body) if isinstance(node, ast.Call) and not node.args}
    assert calls - {"ConfigStore.instance", "ConfigStore.instance().store"} == {*GUARDED}
