"""README.md is true: its tables, its output and its commands."""

from __future__ import annotations

import re
import shlex
import sys
from typing import Any

import pytest
import readme

TEXT = readme.README.read_text()
COMMANDS = re.findall(r"^python -m runner (.*)$", TEXT, re.MULTILINE)
# What runs long: of sweeps among it the plan is quick. The same is done on a smaller scale in test_sweeps, test_launchers and
# test_optuna; test_data_runs runs the experiment.
LONG = re.compile(r"digits_mlp|joblib|n_trials=(30|768)|seed=range\(3\)")


def commands() -> list[Any]:
    """Return the commands of README.md; for a sweep that runs long there is its plan beside it."""
    found = []
    for words in COMMANDS:
        if not LONG.search(words):
            found.append(words)
            continue
        found.append(pytest.param(words, marks=pytest.mark.long))
        if words.startswith("-m "):
            found.append(f"{words} sweep.plan=true")
    return [each for each in found if "--config-dir" not in str(each)]


def test_the_table_of_groups_is_that_of_conf():
    assert readme.part(TEXT, "groups")[2] == readme.groups(), "run `python tests/readme.py`"


def test_the_drawing_is_that_of_the_imports():
    house = readme.HOUSE.read_text()
    assert readme.part(house, "drawing")[2] == readme.drawing(), "run `python tests/readme.py`"
    assert len(house.splitlines()) <= 120


def test_each_file_that_the_drawing_page_names_is_there():
    found = set(re.findall(r"`([\w/]+(?:\.py|/))`", readme.HOUSE.read_text())) - {"conf/"}
    found = {each for each in found if not each.startswith("checkpoint/") and not each.startswith("outputs/")}
    missing = [each for each in found if not list((readme.ROOT / "runner").glob(f"**/{each}"))]
    assert len(found) > 40 and missing == []


def test_the_output_is_what_the_command_prints(cli):
    ended = cli("strategy=tape")
    shown = readme.part(TEXT, "output of: python -m runner strategy=tape")[2].removeprefix("```text\n").removesuffix("```\n")
    assert readme.masked(ended.out) == readme.masked(shown), "run `python tests/readme.py`"


@pytest.mark.parametrize("words", commands())
def test_every_command_runs(drawn, words):
    ended = drawn(*shlex.split(words))
    assert ended.code == 0 and ended.err == ""


def test_the_checks_of_ones_own_loss_are_shown(cli, tmp_path, monkeypatch, capfd):
    from runner.check import command as check

    readme.write_own(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (command,) = [each for each in readme.outputs() if "runner.check" in each]
    monkeypatch.setattr(sys, "argv", ["runner.check", *shlex.split(command)[2:]])
    assert check.main() == 0
    shown = readme.part(TEXT, f"output of: python {command}")[2].removeprefix("```text\n").removesuffix("```\n")
    assert capfd.readouterr().out == shown, "run `python tests/readme.py`"


def test_two_runs_are_compared_as_it_says(cli, runs, monkeypatch, capfd):
    from runner import diff, verify

    for rate in (0.1, 0.2):
        assert cli(f"optimizer.learning_rate={rate}").code == 0
    ids = dict(zip("AB", (run.info.run_id[:10] for run in runs()), strict=True))
    commands = re.findall(r"^    python -m runner\.(diff|verify) (.*)$", TEXT, re.MULTILINE)
    assert [name for name, _ in commands] == ["diff", "verify"]
    for (name, words), module, code in zip(commands, (diff, verify), (1, 0), strict=True):
        monkeypatch.setattr(sys, "argv", [name, *(ids[word] for word in words.split())])
        assert module.main() == code
        printed = capfd.readouterr().out
        assert code == 0 or re.search(r"```text\n(they part.*\n)```", TEXT)[1] in printed


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert target.startswith("https://") or (readme.ROOT / target).exists(), target


def test_the_keys_are_those_of_the_configuration():
    from dataclasses import fields

    from runner.config.schema import Config

    groups = {path.name for path in readme.CONF.iterdir() if path.is_dir()}
    keys = {field.name for field in fields(Config)} - groups
    assert keys == set(re.findall(r"^\| `(\w+)` \| \S+ \|", TEXT, re.MULTILINE)) & keys
