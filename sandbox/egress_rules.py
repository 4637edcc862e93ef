"""What SANDBOX_EGRESS_ALLOW says: which hosts sandboxes may reach, and which addresses those may have."""

import ipaddress
import re
from dataclasses import dataclass

HTTPS_PORT = 443
"""The port of every entry that names no other."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_MAX_NAME = 253
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_WILDCARD = "*."

_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_NOT_PUBLIC = [
    ipaddress.ip_network(network)
    for network in (
        "100.64.0.0/10",  # shared by providers; Alibaba's metadata
        "168.63.129.16",  # Azure's metadata
        "192.0.0.0/24",  # assigned to protocols; Oracle's metadata. Not all of it is private to `ipaddress`
        "192.88.99.0/24",  # 6to4's relays
        "2001::/23",  # assigned to protocols, Teredo among them
        "2002::/16",  # 6to4: any IPv4 address, private ones as well
        "3fff::/20",  # documentation
    )
]


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry.

    Attributes:
        host: a name in lower case and ASCII, or an address; of a wildcard what follows the dot.
        port: the one port.
        is_wildcard: every name below `host`, and not `host` itself.
        address: what to connect to without looking the name up. The operator named it, so it may be private.
    """

    host: str
    port: int
    is_wildcard: bool = False
    address: Address | None = None

    def covers(self, host: str) -> bool:
        """Tell whether a normalised host is one that this entry is about."""
        return host.endswith("." + self.host) if self.is_wildcard else host == self.host


def parse_rules(text: str) -> tuple[Rule, ...]:
    """Read entries that are separated by commas: `NAME`, `*.NAME`, `HOST:PORT`, `NAME:PORT=ADDRESS`.

    Those that name a host come first.

    Raises:
        ValueError: one of them is none.
    """
    rules = [_parse_rule(entry.strip()) for entry in text.split(",") if entry.strip()]
    return tuple(sorted(rules, key=lambda rule: rule.is_wildcard))


def _parse_rule(entry: str) -> Rule:
    place, is_pinned, address = entry.partition("=")
    is_wildcard = place.startswith(_WILDCARD)
    if is_wildcard and is_pinned:
        raise ValueError(f"{entry}: a wildcard cannot have an address")
    try:
        host, port = split_target(place.removeprefix(_WILDCARD), HTTPS_PORT)
        named = ipaddress.ip_address(address.strip("[]")) if is_pinned else _address(host)
    except ValueError as error:
        raise ValueError(f"{entry}: {error}") from None
    if _address(host) and (is_wildcard or is_pinned):
        raise ValueError(f"{entry}: an address stands for itself")
    return Rule(host, port, is_wildcard, named)


def split_target(text: str, default_port: int | None = None) -> tuple[str, int]:
    """Split `host:port` into a normalised host and a port. An IPv6 address stands in brackets.

    Raises:
        ValueError: it is not that.
    """
    host, colon, port = text.rpartition(":")
    if default_port is not None and (not colon or text.endswith("]")):
        host, port = text, str(default_port)
    if not _PORT.fullmatch(port) or int(port) > 0xFFFF:  # noqa: PLR2004 - the last port
        raise ValueError("not a port")
    if host.startswith("[") and host.endswith("]"):
        address = ipaddress.IPv6Address(host[1:-1])
        if address.scope_id is not None:
            raise ValueError("an address within one network only")
        return str(address), int(port)
    if ":" in host:
        raise ValueError("not a host")
    return str(_address(host) or normalise_name(host)), int(port)


def normalise_name(name: str) -> str:
    """Return the one form of a host's name: ASCII (IDNA), lower case, without the final dot.

    Raises:
        ValueError: it is no name. Nor is what some programs take for an address: `127.1`, `0x7f000001`.
    """
    if len(name) > _MAX_NAME + 1:
        raise ValueError("not a host")
    try:
        normalised = name.encode("idna").decode().lower().removesuffix(".")
    except UnicodeError:
        raise ValueError("not a host") from None
    labels = normalised.split(".")
    if (
        len(normalised) > _MAX_NAME
        or not all(_LABEL.fullmatch(label) for label in labels)
        or _NUMBER.fullmatch(labels[-1])
    ):
        raise ValueError("not a host")
    return normalised


def is_public(address: Address) -> bool:
    """Tell whether an address is on the internet: not near the server, nor that of a cloud's metadata."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:  # what an IPv6-only network has in place of an IPv4 address
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address not in _GLOBAL_UNICAST:
            return False
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not any(address in network for network in _NOT_PUBLIC)
    )


def _address(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
