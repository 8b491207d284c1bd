"""Where a server is bound, and who reaches it there."""

from __future__ import annotations

import errno
import ipaddress
import socket

# By which programs of this machine call it.
OWN_NAMES = ("localhost", "127.0.0.1", "[::1]")


def is_loopback(host: str) -> bool:
    """Whether only this machine itself reaches what is bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def in_url(host: str) -> str:
    """A host as an address of the web has it."""
    return f"[{host}]" if ":" in host else host


def names_at(host: str) -> tuple[str, ...] | None:
    """Return the names by which a server at `host` may be asked for; None for any, as other
    machines have names of their own for it.
    """
    return (*OWN_NAMES, in_url(host)) if is_loopback(host) else None


def check_host(host: str, token: str | None) -> None:
    """Raise ValueError where a server would be open to others without a token."""
    if not is_loopback(host) and not token:
        raise ValueError(
            f"a server at {host} can be reached from other machines: give a token that "
            "requests must carry, or leave it at 127.0.0.1"
        )


def bound(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to a port; 0 for any that is free.

    Raises:
        ValueError: it is not available.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
    except OSError as error:
        found.close()
        advice = "; give another port, or 0 for any that is free" * (
            error.errno == errno.EADDRINUSE
        )
        message = f"cannot serve at {host}, port {port}: {error.strerror}{advice}"
        raise ValueError(message) from error
    return found
