"""A task of submitit's that is asked to make room: what it is at is saved and recorded, and goes on where it is begun anew."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import Any

from runner.cli.job import SIGNALS
from runner.sweeps.task import Ended
from runner.system import signals


class Call:
    """What submitit calls where a task has arrived; `run` composes and runs it."""

    def __init__(self, run: Callable[..., Any]) -> None:
        self.run = run

    def __call__(self, *words: Any) -> Any:
        """Run a task, and let submitit requeue it where that was ended to make room; a run's other signals end the process."""
        from submitit import JobEnvironment

        number = JobEnvironment._usr_sig()
        # Submitit's own handler pickles the task, requeues it and ends the process: at once, in the midst of whatever it is at.
        submitit: Any = signal.getsignal(number)
        with signals.making_room(number) as asked:
            try:
                return self.run(*words)
            except Ended as ended:
                if not ended.outcome.interrupted:
                    raise
                if ended.outcome.stopped_by == asked():
                    submitit(number, None)
                sys.exit(SIGNALS[str(ended.outcome.stopped_by)])

    def checkpoint(self, *words: Any) -> Any:
        """Return the task as it is begun anew."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *words)
