"""Messages between the supervisor and a server process: JSON objects over a Unix socket, each after its length.

Both ends are processes of the same program, so nothing is negotiated. A message is bounded, so that neither side can
make the other one grow.
"""

import json
import socket
import struct
from typing import Any

Message = dict[str, Any]
"""A JSON object; `kind` says what it is."""
LENGTH = struct.Struct("!I")
"""What precedes a message: its length in bytes."""
MAX_MESSAGE_BYTES = 64_000_000
_READ_BYTES = 262_144


class ChannelClosed(ConnectionError):
    """The other end has closed the channel, or has sent what is no message."""


def encode(message: Message) -> bytes:
    """Return the bytes of a message."""
    body = json.dumps(message, separators=(",", ":")).encode()
    return LENGTH.pack(len(body)) + body


def check_length(header: bytes) -> int:
    """Return the length of the message that follows. Raises ChannelClosed if it is beyond the limit."""
    length: int = LENGTH.unpack(header)[0]
    if length > MAX_MESSAGE_BYTES:
        raise ChannelClosed(f"A message of {length:,} bytes is too long.")
    return length


class Channel:
    """The supervisor's end of a channel. It never blocks: what cannot be sent yet is kept."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket = connection
        self._received = bytearray()
        self._unsent = bytearray()

    @property
    def has_unsent(self) -> bool:
        """Whether `flush` is to be called when the socket is writable."""
        return bool(self._unsent)

    def send(self, message: Message) -> None:
        """Send a message, or the rest of it later. A process that has stopped reading gets no more."""
        if len(self._unsent) < MAX_MESSAGE_BYTES:
            self._unsent += encode(message)
            self.flush()

    def flush(self) -> None:
        """Send what can be sent now. An error is left for `receive` to report."""
        try:
            while self._unsent:
                del self._unsent[: self.socket.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError:  # The process has ended.
            self._unsent.clear()

    def receive(self) -> list[Message]:
        """Return the messages that have arrived whole. Raises ChannelClosed when there will be no more."""
        is_closed = False
        try:
            while data := self.socket.recv(_READ_BYTES):
                self._received += data
            is_closed = True
        except BlockingIOError:
            pass
        except OSError:
            is_closed = True
        messages = self._take_messages()
        if is_closed and not messages:
            raise ChannelClosed("The process has closed its end.")
        return messages

    def _take_messages(self) -> list[Message]:
        messages = []
        while len(self._received) >= LENGTH.size:
            end = LENGTH.size + check_length(bytes(self._received[: LENGTH.size]))
            if len(self._received) < end:
                break
            messages.append(json.loads(self._received[LENGTH.size : end]))
            del self._received[:end]
        return messages

    def close(self) -> None:
        """Close this end."""
        self.socket.close()
