"""Where the page is served."""

from __future__ import annotations

import ipaddress
import socket

from ...guidance.errors import InputError, reason


def is_local(host: str) -> bool:
    """Whether an address is this computer's own, which others cannot reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_port(host: str, port: int) -> None:
    """Refuse an address that cannot be listened at, before a model is loaded.

    Raises:
        InputError: it cannot; the port is taken, or the address is none of this computer.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((host, port))
    except OSError as error:
        raise InputError(
            f"cannot listen at {host}, port {port}: {reason(error)}; choose another --port or --host"
        ) from error
