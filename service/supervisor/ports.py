"""Ports that several processes listen on: the kernel shares the connections out among their sockets (SO_REUSEPORT)."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from service.settings import InvalidSetting


class CannotListen(InvalidSetting):
    """The address is in use, or is none of this machine."""

    def __init__(self, host: str, port: int, error: OSError) -> None:
        super().__init__(f"Cannot listen on {host}:{port}: {error.strerror}.")


@dataclass(frozen=True)
class ReservedPort:
    """A port that no other user's programs can take.

    Attributes:
        number: of the port, which the system has chosen if it was to be 0.
    """

    number: int


@contextmanager
def reserve_port(host: str, port: int) -> Iterator[ReservedPort]:
    """Keep a port during the `with` block for the processes that call `bind_shared`. Raises CannotListen.

    A socket that is bound and does not listen gets no connections. With SO_REUSEPORT alone, a second server on the
    same port would get some of the first one's connections, instead of an error.
    """
    try:
        with socket.create_server((host, port), family=_family(host)) as exclusive:
            number = exclusive.getsockname()[1]
    except OSError as error:
        raise CannotListen(host, port, error) from None
    with bind_shared(host, number):
        yield ReservedPort(number)


def bind_shared(host: str, port: int) -> socket.socket:
    """Return a socket for one of the processes that share a port. It does not listen yet. Raises CannotListen."""
    listener = socket.socket(_family(host), socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if ":" in host:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # As `socket.create_server` does.
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise CannotListen(host, port, error) from None
    return listener


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
