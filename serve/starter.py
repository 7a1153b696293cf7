"""The process that does for a start what needs PyTorch, and ends with it. `app.start` uses it.

PyTorch takes seconds to import and hundreds of megabytes to hold. In a process of its own it is imported while Ray
starts, and the process that waits until Ctrl-C stays small. This module imports nothing heavy.
"""

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

from fashion_rag.errors import FashionRAGError

AUTH_MODE = "RAY_AUTH_MODE"
SAID, FAILED, DONE = "said", "failed", "done"


class Starter:
    """Does the tasks of `serve.deploying` one after the other, in a process that lives as long as the block."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs,), daemon=True)
        with _token_mode():
            self._process.start()
        # With no copy here, the end of the process is seen as the end of the connection.
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._connection.close()
        self._process.terminate()
        self._process.join()

    def begin(self, task: str, *args: Any) -> None:
        """Begin a task, whose outcome `result` returns."""
        # Where the process has ended, `result` says so.
        with suppress(BrokenPipeError):
            self._connection.send((task, args))

    def result(self, say: Callable[[str], None]) -> Any:
        """Return what the task that was begun returns, once it is done.

        say: is called with what the task waits for. Raises what the task raises, and FashionRAGError if the process
        ends before.
        """
        while True:
            kind, value = self._received()
            if kind == DONE:
                return value
            if kind == FAILED:
                raise value
            say(value)

    def _received(self) -> tuple[str, Any]:
        try:
            message: tuple[str, Any] = self._connection.recv()
            return message
        except (EOFError, ConnectionResetError):
            self._process.join()
            code = self._process.exitcode
            raise FashionRAGError(f"the process that deploys the graph has ended with exit code {code}") from None

    def do(self, task: str, *args: Any, say: Callable[[str], None]) -> Any:
        """Do a task and return what it returns. Argument and errors as for `result`."""
        self.begin(task, *args)
        return self.result(say)


@contextmanager
def _token_mode() -> Iterator[None]:
    """Have processes that start in the block take Ray to ask for tokens, as the Ray that the parent starts does.

    Ray reads the variable when it is imported, which the program's main module may do before `_work` is called. In the
    parent, Ray sets it itself.
    """
    is_set = AUTH_MODE in os.environ
    os.environ.setdefault(AUTH_MODE, "token")
    try:
        yield
    finally:
        if not is_set:
            del os.environ[AUTH_MODE]


def _work(connection: Connection) -> None:
    """Do tasks until the parent closes the connection."""
    # Ctrl-C reaches all processes of a terminal. The parent ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Imported at once, because it takes longer than anything that follows.
    from serve import deploying

    def say(awaited: str) -> None:
        connection.send((SAID, awaited))

    while True:
        try:
            task, args = connection.recv()
        except EOFError:
            return
        try:
            outcome = DONE, getattr(deploying, task)(say, *args)
        except Exception as error:
            # It is the parent's to handle, as if the task had been done there. Its traceback does not come along.
            error.add_note("".join(traceback.format_exception(error)))
            outcome = FAILED, error
        connection.send(outcome)
