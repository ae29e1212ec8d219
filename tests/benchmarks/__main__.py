"""Run the suite: `.venv/bin/python tests/benchmarks --help`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    tests = Path(__file__).parents[1]
    # In the place of this folder, which Python has put there and whose modules have common names.
    sys.path[:1] = [str(tests), str(tests / "support"), str(tests.parent)]
    # MLflow reads it at import.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from runner.system import quiet

    with quiet.tensorflow():
        from benchmarks import suite

    suite.main()
