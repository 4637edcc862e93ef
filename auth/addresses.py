"""Where a request comes from."""

import ipaddress
from collections.abc import Iterable, Mapping
from contextlib import suppress

from auth.settings import Network, get_settings

UNKNOWN = "unknown"
"""Stands for a peer that has no address, as on a unix socket."""

_MAX_HOPS = 16
"""Proxies behind one another that are believed; a header may hold thousands of forged ones."""

_IPV6_HOST_PREFIX = 64
"""RFC 4291: who has one IPv6 address has its /64."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def client_address(
    peer: str | None, headers: Iterable[tuple[bytes, bytes]], trusted: Iterable[Network]
) -> str:
    """Return the address of the client that sent a request, in its one canonical spelling.

    It is the connection's peer, whatever the headers say, unless that is a trusted proxy: then the last
    entry of X-Forwarded-For that is not a trusted proxy itself. What stands before that one is the
    client's own claim.

    Args:
        peer: the socket's other end.
        headers: the request's, lower-case names.
        trusted: the proxies that may speak for a client.
    """
    networks = tuple(trusted)
    address = _parse(peer or "")
    if address is None:
        return UNKNOWN
    hops = _hops(headers) if _is_in(address, networks) else []
    for hop in hops:
        before = _parse(hop)
        if before is None:
            break
        address = before
        if not _is_in(address, networks):
            break
    return str(address)


def subject_of(address: str) -> str:
    """Return the one whom an address's deeds are counted for: itself, or the network of an IPv6 host."""
    with suppress(ValueError):
        parsed = ipaddress.ip_address(address)
        if parsed.version == 6:  # noqa: PLR2004 - of the internet protocol
            return str(ipaddress.ip_network((parsed, _IPV6_HOST_PREFIX), strict=False))
    return address


def is_trusted(address: str) -> bool:
    """Tell whether an address is that of a proxy in TRUSTED_PROXIES, who speaks for many clients."""
    parsed = _parse(address)
    return parsed is not None and _is_in(parsed, get_settings().trusted_proxies)


def client_of(scope: Mapping[str, object], trusted: Iterable[Network]) -> str:
    """As `client_address`, of an ASGI scope."""
    client, headers = scope.get("client"), scope.get("headers")
    peer = str(client[0]) if isinstance(client, tuple | list) and client else None
    return client_address(peer, headers if isinstance(headers, list) else [], trusted)


def _hops(headers: Iterable[tuple[bytes, bytes]]) -> list[str]:
    """Return the entries of X-Forwarded-For, the nearest first. Each proxy adds its peer at the end."""
    joined = b",".join(value for name, value in headers if name == b"x-forwarded-for")
    return joined.decode("latin-1").rsplit(",", _MAX_HOPS)[::-1][:_MAX_HOPS]


def _parse(text: str) -> Address | None:
    text = text.strip()
    if text.startswith("["):  # [address]:port
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:  # address:port
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _is_in(address: Address, networks: tuple[Network, ...]) -> bool:
    return any(address in network for network in networks)
