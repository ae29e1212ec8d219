"""Keep what TensorFlow prints at import off the user's screen; TF_CPP_MIN_LOG_LEVEL=0 shows it."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def tensorflow() -> Iterator[None]:
    """Send file descriptor 2 elsewhere while TensorFlow is imported and finds its devices.

    An error shows all that was sent; Ctrl-C does not.

    Its C++ logger writes there before it reads TF_CPP_MIN_LOG_LEVEL, so the variable alone does not do.
    """
    if os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3") == "0":
        yield
        return
    sys.stderr.flush()
    screen = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
            sys.modules["tensorflow"].config.list_physical_devices()
            # It warns of retracing when a process traces its fifth program; a sweep traces one a job, by intent.
            logging.getLogger("tensorflow").setLevel(logging.ERROR)
            # It tells how long saving variables took.
            logging.getLogger("absl").setLevel(logging.WARNING)
        except KeyboardInterrupt:
            raise
        except BaseException:
            file.seek(0)
            os.write(screen, file.read())
            raise
        finally:
            os.dup2(screen, 2)
            os.close(screen)
