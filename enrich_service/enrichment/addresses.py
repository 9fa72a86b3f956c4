"""Where language models may be asked: never at link-local and metadata addresses.

A cloud machine tells its own credentials to whoever asks 169.254.169.254. The address is judged
when the connection is made, after its name was resolved, and the address that was judged is the one
that is connected to. So no spelling (decimal, octal, hex, IPv4 inside IPv6) and no name helps.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import Any, Final
from urllib.parse import urlsplit

import httpcore2
import httpx2

from enrich_service.core.errors import InvalidInput, LanguageModelError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Metadata services that are not link-local: EC2 over IPv6, Alibaba, Azure, Oracle.
METADATA: Final = frozenset(
    ipaddress.ip_address(address)
    for address in ("fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192")
)
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
_COMPATIBLE: Final = ipaddress.ip_network("::/96")


def meant_by(address: Address) -> Iterable[Address]:
    """`address`, and the IPv4 addresses that it carries inside."""
    yield address
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            yield address.ipv4_mapped
        if address.sixtofour is not None:
            yield address.sixtofour
        if address.teredo is not None:
            yield from address.teredo
        if address in _NAT64 or address in _COMPATIBLE:
            yield ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)


def check_address(host: str, address: str) -> None:
    """Raise LanguageModelError where `host` means an address that is never asked."""
    for meant in meant_by(ipaddress.ip_address(address.partition("%")[0])):
        if meant.is_link_local or meant.is_multicast or meant in METADATA:
            raise LanguageModelError(
                f"{host} is {address}, a link-local or metadata address, which is never asked: set "
                "OPENAI_BASE_URL to the language model's own address"
            )


def check_host(base_url: str, allowed: Collection[str]) -> None:
    """Judge the host of `base_url` before anything is asked, as far as that needs no name server.

    Raises:
        InvalidInput: `allowed` names hosts, and this one is not among them.
        LanguageModelError: it is the number of an address that is never asked.
    """
    host = urlsplit(base_url).hostname or ""
    with suppress(OSError, UnicodeError):
        for info in socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST):
            check_address(host, str(info[4][0]))
    if allowed and host not in allowed:
        raise InvalidInput(
            f"the language model's host {host!r} is not among ENRICH_LLM_HOSTS "
            f"({', '.join(sorted(allowed))}): add it, or set another OPENAI_BASE_URL"
        )


class _Guarded(httpcore2.AsyncNetworkBackend):
    """Connects to addresses that were judged, and to no others."""

    def __init__(self) -> None:
        self._backend = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connect to the first address of `host` that answers."""
        try:
            async with asyncio.timeout(timeout):
                found = await asyncio.get_running_loop().getaddrinfo(
                    host, port, type=socket.SOCK_STREAM
                )
        except TimeoutError:
            raise httpcore2.ConnectTimeout(f"no answer to the question for {host}") from None
        except OSError as error:
            raise httpcore2.ConnectError(str(error)) from error
        options: Any = (port, timeout, local_address, socket_options)
        addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
        for address in addresses:
            check_address(host, address)
        for address in addresses[:-1]:
            try:
                return await self._backend.connect_tcp(address, *options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                continue
        return await self._backend.connect_tcp(addresses[-1], *options)


class GuardedTransport(httpx2.AsyncHTTPTransport):
    """httpx2's own transport, on connections that are judged."""

    def __init__(self, limits: httpx2.Limits) -> None:
        # In place of the parent's own, which would make a pool that is not judged.
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=httpx2.create_ssl_context(),
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=_Guarded(),
        )
