"""Server-side request forgery: link-local and metadata addresses are refused as language models.

A cloud machine gives its own credentials to anyone who requests 169.254.169.254. The address is
checked when the connection is made, after name resolution, and the checked address is the one
connected to. So no spelling (decimal, octal, hex, IPv4 in IPv6) and no host name gets around it.
"""

import ipaddress
import socket
from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

import aiohttp
import httpx2
from aiohttp.abc import ResolveResult

from enrich_service.core.errors import InvalidInput, LanguageModelError, RequestRejected

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Metadata services that are not link-local: EC2 over IPv6, Alibaba, Azure, Oracle.
METADATA: Final = frozenset(
    ipaddress.ip_address(address)
    for address in ("fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192")
)
MAX_REPLY_BYTES: Final = 16 * 1024 * 1024  # of one answer, unpacked; a completion has a few kB
MAX_FILE_BYTES: Final = 512 * 1024 * 1024  # of a file of answers to a batch
_UNPACKED: Final = frozenset({b"content-encoding", b"content-length", b"transfer-encoding"})
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


class _Resolver(aiohttp.ThreadedResolver):
    """Names lead to addresses that were judged."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """All addresses of `host`; LanguageModelError where one of them is never asked."""
        found = await super().resolve(host, port, family)
        for address in found:
            check_address(host, address["host"])
        return found


def _socket(info: aiohttp.AddrInfoType) -> socket.socket:
    """A socket for an address: numbers are not resolved, so what they mean is judged here."""
    family, kind, protocol, _, address = info
    check_address(str(address[0]), str(address[0]))
    return socket.socket(family, kind, protocol)


def _most_bytes(url: httpx2.URL) -> int:
    return MAX_FILE_BYTES if url.path.endswith("/content") else MAX_REPLY_BYTES


async def _read(answer: aiohttp.ClientResponse, most_bytes: int) -> httpx2.Response:
    """The whole answer, unpacked as it comes, so that a small one cannot fill the memory."""
    packed = "content-encoding" in answer.headers
    if answer.content_length is not None and answer.content_length <= most_bytes and not packed:
        content = await answer.read()
        return httpx2.Response(answer.status, headers=answer.raw_headers, content=content)
    coming = httpx2.Response(
        answer.status, headers=answer.raw_headers, content=answer.content.iter_any()
    )
    unpacked = bytearray()
    async for part in coming.aiter_bytes():
        unpacked += part
        if len(unpacked) > most_bytes:
            raise RequestRejected(
                f"the answer of {answer.url.origin()} is larger than "
                f"{most_bytes // 1024**2} MiB, so it is not an answer of a language model"
            )
    headers = [(name, value) for name, value in answer.raw_headers if name.lower() not in _UNPACKED]
    return httpx2.Response(answer.status, headers=headers, content=bytes(unpacked))


class GuardedTransport(httpx2.AsyncBaseTransport):
    """Sends httpx2's requests to `base_url` by aiohttp, on connections that are judged.

    aiohttp, since httpx2's own transport takes several times as much of the processor for a call:
    its parser is Python, and its pool looks at every open connection before and after each call.
    """

    def __init__(self, base_url: str) -> None:
        # Here, where mostly a thread waits, since it reads files for some 30 ms, in which an event
        # loop would stand. Plain http needs none.
        self._tls = httpx2.create_ssl_context() if urlsplit(base_url).scheme == "https" else True
        self._session: aiohttp.ClientSession | None = None  # opened where there is an event loop

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0,  # who asks bounds the calls
                    ssl=self._tls,
                    resolver=_Resolver(),
                    socket_factory=_socket,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,  # httpx2 does
            )
        return self._session

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send the request and read the whole answer. Raises what httpx2 raises.

        And RequestRejected where the answer is larger than any answer may be.
        """
        limits = request.extensions.get("timeout", {})
        where = request.url  # its user and password are a header already
        try:
            async with self._opened().request(
                request.method,
                f"{where.scheme}://{where.netloc.decode()}{where.raw_path.decode()}",
                headers=request.headers,
                data=await request.aread() or None,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(
                    sock_connect=limits.get("connect"), sock_read=limits.get("read")
                ),
            ) as answer:
                return await _read(answer, _most_bytes(where))
        except aiohttp.ConnectionTimeoutError as error:
            raise httpx2.ConnectTimeout(str(error)) from error
        except TimeoutError as error:
            raise httpx2.ReadTimeout(str(error)) from error
        except (aiohttp.ClientError, OSError) as error:
            raise httpx2.NetworkError(str(error)) from error

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
