"""A signal ends the process in time, whatever it is at."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from conftest import environment

from runner.system import signals

# Waits outside of Python, as TensorFlow does: for a lock that the thread itself has.
STUCK = (
    "import ctypes, os, sys; from runner.system import signals\n"
    "c, lock = ctypes.CDLL(None), ctypes.create_string_buffer(64)\n"
    "with signals.caught() as came:\n"
    "    for number in map(int, sys.argv[1:]): os.kill(os.getpid(), number); assert came()\n"
    "    c.pthread_mutex_lock(lock); print('stuck', flush=True); c.pthread_mutex_lock(lock)\n"
)


@pytest.fixture(params=[()])
def stuck(request):
    """Return a process that waits outside of Python, and has heard of these signals before."""
    command = [sys.executable, "-c", STUCK, *map(str, request.param)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment(), text=True, start_new_session=True, **pipes) as process:
        assert process.stdout is not None and process.stdout.readline() == "stuck\n"
        yield process
        process.kill()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_chunk_that_goes_on_is_given_up(stuck, number, code):
    began = time.monotonic()
    os.kill(stuck.pid, number)
    _, err = stuck.communicate(timeout=20)
    assert stuck.returncode == code and signals.GRACE <= time.monotonic() - began < 5
    assert err.count("\n") == 1 and "as it was saved last" in err


def test_a_second_signal_ends_the_process_at_once(stuck):
    os.kill(stuck.pid, signal.SIGTERM)
    time.sleep(0.3)
    assert stuck.poll() is None
    os.kill(stuck.pid, signal.SIGINT)
    assert stuck.wait(timeout=1) == 130


@pytest.mark.parametrize("stuck", [(signal.SIGINT.value,)], indirect=True)
def test_so_does_one_after_a_signal_that_was_heard(stuck):
    os.kill(stuck.pid, signal.SIGTERM)
    assert stuck.wait(timeout=1) == 143


def test_a_signal_that_is_heard_is_waited_for_no_longer(monkeypatch):
    monkeypatch.setattr(signals, "GRACE", 0.2)
    with signals.caught() as came:
        assert came() is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert came() == "SIGTERM"
        time.sleep(0.4)
        assert came() == "SIGTERM"
    with signals.caught() as came:
        assert came() is None


def test_the_handlers_are_as_before():
    before = [signal.getsignal(each) for each in signals.SIGNALS]
    with signals.caught():
        pass
    assert before == [signal.getsignal(each) for each in signals.SIGNALS]
    assert signal.set_wakeup_fd(-1) == -1


def test_another_thread_sets_no_handlers():
    names: list[str | None] = []

    def work() -> None:
        with signals.caught() as came:
            names.append(came())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert names == [None]


@pytest.mark.parametrize("block", [signals.put_off, signals.after])
def test_ctrl_c_waits_for_the_end_of_a_block_that_it_would_break(block):
    before, done = signal.signal(signal.SIGINT, signal.default_int_handler), []
    try:
        with pytest.raises(KeyboardInterrupt), block():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
            done.append(True)
        assert done and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
