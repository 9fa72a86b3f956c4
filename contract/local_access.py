"""Access checks of both servers: API keys, local clients, cross-site requests; their address."""

import base64
import binascii
import ipaddress
import socket
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})


def secret_of(authorization: str) -> str | None:
    """The key in an Authorization header: a bearer token, or the password of HTTP Basic."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip() or None
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2] or None
        except (binascii.Error, UnicodeDecodeError):
            return None
    return None


def is_loopback(host: str) -> bool:
    """Whether `host`, a name or an IP address, is the loopback interface."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen_error(host: str, port: int) -> str | None:
    """Why no server can listen at an address, as one line for people; None if one can."""
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in addresses:
            try:
                probe = socket.socket(family, kind, protocol)
            except OSError:  # this machine has no IPv6: asyncio skips such an address, too
                continue
            with probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
    except OSError as error:
        return f"cannot listen at {host}:{port} ({error.strerror}): choose another --port or --host"
    return None


def is_local(client: str | None, host: str) -> bool:
    """Whether the address of a client and the Host header are both loopback.

    The header is checked against DNS rebinding: a foreign name that resolves to 127.0.0.1.
    """
    try:
        named = urlsplit(f"//{host}").hostname or ""
    except ValueError:  # malformed
        return False
    return client is not None and is_loopback(client) and is_loopback(named)


def is_cross_site(method: str, headers: Mapping[str, str]) -> bool:
    """Whether a request that may change data is from another site. `headers` ignore case."""
    if method in SAFE_METHODS:
        return False
    # Browsers send Sec-Fetch-Site; without it (plain http), compare the origin.
    if (site := headers.get("sec-fetch-site")) is not None:
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is not None and origin.partition("//")[2] != headers.get("host")
