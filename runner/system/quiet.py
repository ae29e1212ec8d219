"""Hide TensorFlow's output at import; TF_CPP_MIN_LOG_LEVEL=0 shows it."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def tensorflow() -> Iterator[None]:
    """Redirect file descriptor 2 while TensorFlow is imported and finds its devices.

    An error shows all redirected output; Ctrl-C does not.

    TensorFlow's C++ logger writes there before it reads TF_CPP_MIN_LOG_LEVEL, so the variable alone is not enough.
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
            # TensorFlow warns of retracing at a process's fifth program; a sweep traces one per job on purpose.
            logging.getLogger("tensorflow").setLevel(logging.ERROR)
            # absl logs how long saving variables took.
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
