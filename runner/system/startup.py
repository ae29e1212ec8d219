"""Faster start-up and exit: skip Keras's optional imports (2 s) and TensorFlow's teardown (1 s). RUNNER_QUICK=0 disables this.

Keras imports scikit-learn, pandas, Matplotlib and JAX if they are installed, for its wrappers, plots and checkpoints. MLflow
brings the first three, so they always are. TensorFlow's teardown, object by object, ends nothing that the end of the process
does not end.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

OPTIONAL = ("sklearn", "pandas", "matplotlib", "jax")
wanted = os.environ.get("RUNNER_QUICK") != "0"
# Functions that are called before the process ends.
at_end: list[Callable[[], object]] = []


@contextmanager
def without_optional_imports() -> Iterator[None]:
    """Make the optional packages look absent while TensorFlow and Keras are imported in this block.

    After the block they can be imported as usual. A package that is already imported, perhaps by the user's loss, stays.
    """
    held = [name for name in OPTIONAL if name not in sys.modules] if wanted else []
    sys.modules.update(dict.fromkeys(held))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in held:
            del sys.modules[name]


def leave(code: int) -> None:
    """End the process at once, after all output and logs are flushed."""
    for each in at_end:
        each()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    if wanted:
        os._exit(code)
    sys.exit(code)
