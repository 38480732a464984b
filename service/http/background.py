"""Responses that take too long to build for the event loop."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class SharedTask(Generic[T]):
    """Computes something in a task; whoever asks while it is being computed gets the same result.

    So clients that ask at a time cause one computation. Used on the event loop only.
    """

    def __init__(self, compute: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._compute = compute
        self._running: asyncio.Future[T] | None = None

    async def __call__(self) -> T:
        """Return the result. Raises what the function raises."""
        if self._running is None or self._running.done():
            self._running = asyncio.ensure_future(self._compute())
        return await asyncio.shield(self._running)  # A client that disconnects does not cancel it for the others.


class SharedCall(SharedTask[T]):
    """The same for a function that is called in a thread."""

    def __init__(self, prepare: Callable[[], Callable[[], T]]) -> None:
        """`prepare` is called on the event loop, and what it returns in a thread."""

        async def compute() -> T:
            return await asyncio.to_thread(prepare())

        super().__init__(compute)
