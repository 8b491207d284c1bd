"""Whether what is to be downloaded can be."""

from __future__ import annotations

import os
import socket
import threading
import urllib.parse

_TIMEOUT = 5.0  # seconds


def reachable(url: str) -> bool:
    """Whether the host of an address can be connected to, found out within seconds: what downloads
    would retry for minutes.
    """
    parts = urllib.parse.urlsplit(url)
    if any(
        os.environ.get(name) for name in (f"{parts.scheme}_proxy", f"{parts.scheme.upper()}_PROXY")
    ):
        return True  # only the proxy can tell
    result: list[bool] = []

    def connect() -> None:
        try:
            port = parts.port or {"http": 80, "ftp": 21}.get(parts.scheme, 443)
            socket.create_connection((parts.hostname, port), timeout=_TIMEOUT).close()
            result.append(True)
        except OSError:
            result.append(False)

    # In a thread, because looking up a name has no timeout of its own.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(2 * _TIMEOUT)
    return bool(result and result[0])
