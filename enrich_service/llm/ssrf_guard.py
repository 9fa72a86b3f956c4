"""Server-side request forgery: blocks link-local and metadata addresses as language models.

A cloud machine gives its own credentials to anyone who requests 169.254.169.254. The address is
checked when the connection is made, after name resolution, and the connection uses the checked
address. So no spelling (decimal, octal, hex, IPv4 in IPv6) and no host name bypasses the check.
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
MAX_REPLY_BYTES: Final = 16 * 1024 * 1024  # of one decompressed answer; a completion has a few kB
MAX_FILE_BYTES: Final = 512 * 1024 * 1024  # of a result file of a batch
_ENCODINGS: Final = frozenset({b"content-encoding", b"content-length", b"transfer-encoding"})
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
_COMPATIBLE: Final = ipaddress.ip_network("::/96")


def with_embedded(address: Address) -> Iterable[Address]:
    """`address`, and the IPv4 addresses that it embeds."""
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
    """Raise LanguageModelError if `address`, of `host`, is blocked."""
    for candidate in with_embedded(ipaddress.ip_address(address.partition("%")[0])):
        if candidate.is_link_local or candidate.is_multicast or candidate in METADATA:
            raise LanguageModelError(
                f"{host} is {address}, a link-local or metadata address, which is blocked: set "
                "OPENAI_BASE_URL to the language model's own address"
            )


def check_host(base_url: str, allowed: Collection[str]) -> None:
    """Check the host of `base_url` before the first request, without name resolution.

    Raises:
        InvalidInput: `allowed` is not empty and does not contain the host.
        LanguageModelError: the host is a blocked IP address.
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
    """Resolves names to checked addresses."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """All addresses of `host`. Raises LanguageModelError if one is blocked."""
        addresses = await super().resolve(host, port, family)
        for address in addresses:
            check_address(host, address["host"])
        return addresses


def _socket(info: aiohttp.AddrInfoType) -> socket.socket:
    """A socket for a checked address: IP addresses do not pass through the resolver."""
    family, kind, protocol, _, address = info
    check_address(str(address[0]), str(address[0]))
    return socket.socket(family, kind, protocol)


def _max_bytes(url: httpx2.URL) -> int:
    return MAX_FILE_BYTES if url.path.endswith("/content") else MAX_REPLY_BYTES


async def _read(answer: aiohttp.ClientResponse, max_bytes: int) -> httpx2.Response:
    """The whole answer. It is decompressed in parts, so that a small one cannot fill the memory."""
    compressed = "content-encoding" in answer.headers
    if answer.content_length is not None and answer.content_length <= max_bytes and not compressed:
        content = await answer.read()
        return httpx2.Response(answer.status, headers=answer.raw_headers, content=content)
    stream = httpx2.Response(
        answer.status, headers=answer.raw_headers, content=answer.content.iter_any()
    )
    decompressed = bytearray()
    async for part in stream.aiter_bytes():
        decompressed += part
        if len(decompressed) > max_bytes:
            raise RequestRejected(
                f"the answer of {answer.url.origin()} is larger than "
                f"{max_bytes // 1024**2} MiB, so it is not an answer of a language model"
            )
    headers = [
        (name, value) for name, value in answer.raw_headers if name.lower() not in _ENCODINGS
    ]
    return httpx2.Response(answer.status, headers=headers, content=bytes(decompressed))


class GuardedTransport(httpx2.AsyncBaseTransport):
    """Sends httpx2's requests to `base_url` with aiohttp, on checked connections.

    aiohttp, since httpx2's own transport needs several times the CPU time per call: its parser is
    written in Python, and its pool scans every open connection before and after each call.
    """

    def __init__(self, base_url: str) -> None:
        # Created here, mostly in a thread: it reads files for about 30 ms, which would block an
        # event loop. Plain http needs none.
        self._tls = httpx2.create_ssl_context() if urlsplit(base_url).scheme == "https" else True
        self._session: aiohttp.ClientSession | None = None  # opened in the event loop

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0,  # the caller limits concurrent calls
                    ssl=self._tls,
                    resolver=_Resolver(),
                    socket_factory=_socket,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,  # httpx2 does
            )
        return self._session

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send the request and read the whole answer.

        Raises the errors of httpx2, and RequestRejected if the answer is too large.
        """
        limits = request.extensions.get("timeout", {})
        url = request.url  # user and password are already in a header
        try:
            async with self._opened().request(
                request.method,
                f"{url.scheme}://{url.netloc.decode()}{url.raw_path.decode()}",
                headers=request.headers,
                data=await request.aread() or None,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(
                    sock_connect=limits.get("connect"), sock_read=limits.get("read")
                ),
            ) as answer:
                return await _read(answer, _max_bytes(url))
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
