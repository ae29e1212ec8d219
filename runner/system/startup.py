"""Two seconds of every start and one of every end that a run has no use for; RUNNER_QUICK=0 keeps them.

Keras imports scikit-learn, pandas, Matplotlib and JAX where they are installed, for its wrappers, plots and checkpoints;
MLflow brings the first three, so they always are. And taking TensorFlow's modules apart, one object after another, ends nothing
that the end of the process does not end.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

OPTIONAL = ("sklearn", "pandas", "matplotlib", "jax")
wanted = os.environ.get("RUNNER_QUICK") != "0"
# What is to be done before the process ends.
at_end: list[Callable[[], object]] = []


@contextmanager
def without_optional_imports() -> Iterator[None]:
    """Let packages that TensorFlow and Keras can do without look absent while these are imported in this block.

    After it everybody can import them as ever. What is imported already, by a loss of the user's perhaps, stays as it is.
    """
    held = [name for name in OPTIONAL if name not in sys.modules] if wanted else []
    sys.modules.update(dict.fromkeys(held))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in held:
            del sys.modules[name]


def leave(code: int) -> None:
    """End the process at once, after all that was printed and logged is out."""
    for each in at_end:
        each()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    if wanted:
        os._exit(code)
    sys.exit(code)
