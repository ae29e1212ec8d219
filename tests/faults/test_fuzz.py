"""Ten thousand harmful configurations, each read by a real command that is watched: nothing outside the list happens.

`FUZZ_FIRST=N` begins with another case, `FUZZ_SECONDS=3600` goes on for an hour; as a script it shows the case of a number.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from configurations import Case, case
from sandbox import Sandbox

FIRST, SECONDS = int(os.environ.get("FUZZ_FIRST", 0)), float(os.environ.get("FUZZ_SECONDS", 0))


@pytest.mark.parametrize("count", [30, pytest.param(10_000, marks=pytest.mark.long)])
def test_no_configuration_does_what_is_not_on_the_list(tmp_path, count):
    sandbox, harms, end = Sandbox(tmp_path), dict[str, list[str]](), time.monotonic() + SECONDS
    numbers = itertools.count(FIRST) if SECONDS else range(FIRST, FIRST + count)
    for number in itertools.takewhile(lambda _: not SECONDS or time.monotonic() < end, numbers):
        if found := sandbox.harms(made := case(number)):
            harms[f"{number}: {made.name}"] = found
    assert not harms, "\n".join(f"{name}: {found}" for name, found in harms.items())


def test_the_watch_sees_what_it_is_for(tmp_path):
    """Commands that do such things by themselves, as a user's own loss may, are seen to do them."""
    code = """
import os, socket, subprocess, tensorflow as tf
open(os.environ["WATCHED"] + "/victim/config.yaml", "w").close()
open(os.environ["WATCHED"] + "/secret.txt").read()
os.remove("keys/id_rsa")
subprocess.run(["touch", "new"])
os.system("true")
import importlib
import this
importlib.import_module("turtledemo")
tf.compat.v1.train.Server({"local": ["localhost:0"]}, start=True)
def loss(x): return (x - 4) ** 2
"""
    words = ("--allow-target", "mine", "loss._target_=mine.loss", "max_iterations=1", "execution=eager", "tracking=none")
    found = "\n".join(Sandbox(tmp_path).harms(Case("what is let in", words, files={"mine.py": code})))
    for each in (
        "changed victim/config.yaml",
        "secret.txt",
        "changed work/keys/id_rsa",
        "started ['touch'",
        "started ['true'",
        "left work/new",
    ):
        assert each in found, found
    assert "imported this" in found and "turtledemo" in found and "listens on" in found


def show(numbers: range, folder: Path) -> None:
    """Print what cases do that they should not."""
    sandbox, kinds = Sandbox(folder), Counter[str]()
    for number in numbers:
        began, made = time.monotonic(), case(number)
        found = sandbox.harms(made)
        kinds[made.name.split(" ")[0] if found else "nothing"] += 1
        if found or len(numbers) == 1:
            print(f"{number} ({time.monotonic() - began:.1f} s): {made.name}\n  " + "\n  ".join(found), flush=True)
        if len(numbers) == 1:
            print(made, (folder / "box/out").read_text()[-2000:], (folder / "box/err").read_text()[-2000:], sep="\n")
    print(kinds)


if __name__ == "__main__":
    import tempfile

    first, *last = map(int, sys.argv[1:])
    show(range(first, last[0] if last else first + 1), Path(tempfile.mkdtemp()))
