"""What is held back while TensorFlow is imported is there again, and a quick end loses nothing."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import ROOT

LOSS = """
import sys

early = {name for name in ("jax", "pandas", "sklearn", "matplotlib") if name in sys.modules}
import jax, matplotlib, pandas, sklearn.linear_model


def loss(x):
    assert pandas.DataFrame({"x": [1]}).x[0] == 1
    print("imported before:", sorted(early))
    return (x - 1) ** 2
"""


@pytest.mark.parametrize(("quick", "before"), [("1", "[]"), ("0", "['jax', 'matplotlib', 'pandas', 'sklearn']")])
def test_a_loss_can_import_what_keras_could_not(tmp_path, quick, before):
    (tmp_path / "mine.py").write_text(LOSS)
    (tmp_path / "conf/loss").mkdir(parents=True)
    (tmp_path / "conf/loss/mine.yaml").write_text("_target_: mine.loss\n")
    words = ["--config-dir", "conf", "loss=mine", "guess=point", "guess.x=3", "tracking=none", "max_iterations=2"]
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}", "RUNNER_QUICK": quick}
    command = [sys.executable, "-m", "runner", *words]
    ended = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert f"imported before: {before}\n" in ended.stdout
    # All of it came through the pipe before the process ended.
    assert ended.stdout.endswith("nothing was recorded (tracking=none)\n") and ended.stderr == ""
