"""A function that calls back, turned inside out: it runs to its next call, waits there, and goes on with the answer."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any


class Closed(BaseException):
    """Unwinds a function that nobody will answer any more."""


class Returned(Exception):
    """The function has come to its end, with this value."""

    def __init__(self, value: Any) -> None:
        super().__init__(value)
        self.value = value


class Suspended:
    """Runs `function(ask)` in a thread, one of the two at a time: `ask(question)` there waits for `resume(answer)` here.

    So a library that wants to drive is driven, and all that it calls runs in the thread that answers, where a debugger, signals
    and exceptions are at home.
    """

    def __init__(self, function: Callable[[Callable[[Any], Any]], Any]) -> None:
        self.questions: SimpleQueue[Any] = SimpleQueue()
        self.answers: SimpleQueue[Any] = SimpleQueue()
        # Ends with the process, should nobody close it.
        self.thread = Thread(target=self.run, args=(function,), daemon=True)

    def run(self, function: Callable[[Callable[[Any], Any]], Any]) -> None:
        """Run the function; its return value and its exception are the last questions."""
        try:
            self.questions.put(Returned(function(self.ask)))
        except BaseException as error:
            self.questions.put(error)

    def ask(self, question: Any) -> Any:
        """Hand a question over and return its answer; raises Closed where there is none to come."""
        self.questions.put(question)
        answer = self.answers.get()
        if isinstance(answer, Closed):
            raise answer
        return answer

    def resume(self, answer: Any = None) -> Any:
        """Begin, or go on with an answer, and return the next question.

        Raises Returned at the end, or what the function raises.
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
        """End the function where it waits, if it does, and its thread."""
        if self.thread.is_alive():
            self.answers.put(Closed())
            self.thread.join()
