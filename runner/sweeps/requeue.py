"""A submitit task that is preempted: its run saves a checkpoint and is recorded, the task is requeued, and the run resumes."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import Any

from runner.cli.job import SIGNALS
from runner.sweeps.task import Ended
from runner.system import signals


class Call:
    """The callable that submitit pickles and calls on the node; `run` composes and runs the job."""

    def __init__(self, run: Callable[..., Any]) -> None:
        self.run = run

    def __call__(self, *words: Any) -> Any:
        """Run a task and return its result; if the preemption signal ended the run, let submitit requeue the task.

        If another signal ended the run, the process exits with the exit code of that signal.
        """
        from submitit import JobEnvironment

        number = JobEnvironment._usr_sig()
        # Submitit's handler pickles the task, requeues it and ends the process, without waiting for the chunk under way.
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
        """Return the submission that submitit requeues: the same task with the same arguments."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *words)
