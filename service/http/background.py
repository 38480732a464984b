"""Responses that take too long to build for the event loop."""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class SharedCall(Generic[T]):
    """Computes something in a thread; whoever asks while it is being computed gets the same result.

    So clients that ask at a time cause one computation. Used on the event loop only.
    """

    def __init__(self, prepare: Callable[[], Callable[[], T]]) -> None:
        """`prepare` is called on the event loop, and what it returns in a thread."""
        self._prepare = prepare
        self._running: asyncio.Future[T] | None = None

    async def __call__(self) -> T:
        """Return the result. Raises what the function raises."""
        if self._running is None or self._running.done():
            self._running = asyncio.ensure_future(asyncio.to_thread(self._prepare()))
        return await asyncio.shield(self._running)  # A client that disconnects does not cancel it for the others.
