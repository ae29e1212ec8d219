"""A function with callbacks as a coroutine: it runs to its next callback, waits there, and continues with the answer."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any


class Closed(BaseException):
    """Unwinds a function that will receive no more answers."""


class Returned(Exception):
    """The function has returned this value."""

    def __init__(self, value: Any) -> None:
        super().__init__(value)
        self.value = value


class Suspended:
    """Runs `function(ask)` in a second thread: `ask(question)` there waits for `resume(answer)` in the caller's thread.

    Only one of the two threads runs at a time. So the caller controls a library that would otherwise control the caller. The
    answers are computed in the caller's thread, where a debugger, signals and exceptions work as usual.
    """

    def __init__(self, function: Callable[[Callable[[Any], Any]], Any]) -> None:
        self.questions: SimpleQueue[Any] = SimpleQueue()
        self.answers: SimpleQueue[Any] = SimpleQueue()
        # A daemon thread ends with the process, even if `close` is never called.
        self.thread = Thread(target=self.run, args=(function,), daemon=True)

    def run(self, function: Callable[[Callable[[Any], Any]], Any]) -> None:
        """Run the function, and put its return value or its exception as the last question."""
        try:
            self.questions.put(Returned(function(self.ask)))
        except BaseException as error:
            self.questions.put(error)

    def ask(self, question: Any) -> Any:
        """Put a question, and return its answer; raise Closed if no answer will come."""
        self.questions.put(question)
        answer = self.answers.get()
        if isinstance(answer, Closed):
            raise answer
        return answer

    def resume(self, answer: Any = None) -> Any:
        """Start the function, or continue it with an answer, and return its next question.

        Raises Returned at the function's end, the function's own exception, or Closed if it has ended before.
        """
        if self.thread.ident is None:
            self.thread.start()
        elif self.thread.is_alive():
            self.answers.put(answer)
        else:
            raise Closed
        question = self.questions.get()
        if isinstance(question, BaseException):
            self.thread.join()
            raise question
        return question

    def close(self) -> None:
        """End the function, if it waits for an answer, and its thread."""
        if self.thread.is_alive():
            self.answers.put(Closed())
            self.thread.join()
