"""Media fetched from the network for a request, which must not reach what the server alone can reach.

The host is resolved here, every address it has must be a public one, and the connection goes to that very address:
a name that changes its mind in between gains nothing. Redirects are followed by the same rules. Proxies of the
environment are not used. Size, time and the number of redirects are bounded.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from urllib.parse import urljoin, urlsplit

from ...errors import MediaError
from ...media.addresses import unreachable, without_secrets

_MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_SILENCE_S = 10.0
_PIECE = 1 << 16
# Addresses of IPv6 that stand for one of IPv4: NAT64, 6to4 and Teredo.
_TRANSLATED = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")))

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(address: Address) -> bool:
    """Whether an address is one that anybody on the internet reaches: not private, local, reserved or translated."""
    mapped = getattr(address, "ipv4_mapped", None)
    if mapped is not None:
        return is_public(mapped)
    if address.version == 6 and any(address in network for network in _TRANSLATED):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def download(address: str, most_bytes: int, limit_s: float, allowed: Callable[[Address], bool] = is_public) -> bytes:
    """The content at an http or https address.

    allowed: which machines may be asked. Raises MediaError, without the secrets of the address.
    """
    name = without_secrets(address)
    deadline = time.monotonic() + limit_s
    try:
        for _ in range(_MAX_REDIRECTS + 1):
            with _response(address, name, deadline, allowed) as response:
                target = response.headers.get("Location")
                if response.status in _REDIRECTS and target:
                    address = urljoin(address, target)
                    continue
                if response.status != 200:
                    raise MediaError(f"{name}: the server answers {response.status} {response.reason}".rstrip())
                return _content(response, name, most_bytes, deadline)
        raise MediaError(f"{name}: it redirects more than {_MAX_REDIRECTS} times")
    except MediaError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as e:
        raise MediaError(
            f"{name}: {_slow(limit_s) if time.monotonic() > deadline else unreachable(e, _SILENCE_S)}"
        ) from e


def _slow(limit_s: float) -> str:
    return f"fetching it takes longer than {limit_s:g} s"


def _content(response: http.client.HTTPResponse, name: str, most_bytes: int, deadline: float) -> bytes:
    parts, size = [], 0
    while piece := response.read1(_PIECE):
        parts.append(piece)
        size += len(piece)
        if size > most_bytes:
            raise MediaError(f"{name}: it is larger than the server's limit of {most_bytes:,} bytes")
    if time.monotonic() > deadline:  # the connection was cut, which looks like the end of a body without a length
        raise TimeoutError
    if response.length:
        raise ConnectionResetError
    if not size:
        raise MediaError(f"{name}: the server sends nothing")
    return b"".join(parts)


@contextlib.contextmanager
def _response(
    address: str, name: str, deadline: float, allowed: Callable[[Address], bool]
) -> Iterator[http.client.HTTPResponse]:
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise MediaError(f"{name}: only http and https addresses are fetched")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    sock = _connected(parts.hostname, port, name, allowed)
    # A server that sends a byte now and then is never silent: at the deadline the connection is cut.
    cut = threading.Timer(max(0.0, deadline - time.monotonic()), _cut, [sock])
    cut.daemon = True
    cut.start()
    try:
        if parts.scheme == "https":
            sock = ssl.create_default_context().wrap_socket(sock, server_hostname=parts.hostname)
        connection = http.client.HTTPConnection(parts.hostname, port)
        connection.sock = sock
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path, headers={"User-Agent": "vl3edge", "Accept-Encoding": "identity"})
        yield connection.getresponse()
    finally:
        cut.cancel()
        sock.close()


def _cut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _connected(host: str, port: int, name: str, allowed: Callable[[Address], bool]) -> socket.socket:
    """A connection to a host all of whose addresses are allowed."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    targets = [(family, target) for family, _, _, _, target in found]
    for _, target in targets:
        if not allowed(ipaddress.ip_address(str(target[0]).partition("%")[0])):
            raise MediaError(f"{name}: this server fetches from public addresses only, and the host has another")
    failure: OSError | None = None
    for family, target in targets:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.settimeout(_SILENCE_S)
        try:
            sock.connect(target)
        except OSError as e:
            sock.close()
            failure = e
        else:
            return sock
    raise failure or OSError("the host has no address")
