"""Which Host a request may name, and whether an address is this machine's own.

A page of a foreign site can have its name resolve to 127.0.0.1 and then ask a server there as if it were
its own origin (DNS rebinding); its Host header still names the foreign site.
"""

import ipaddress
from collections.abc import Collection

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


def host_name(header: str) -> str:
    """Return the name in a Host header, lower-case, without port, brackets and final dot."""
    header = header.strip().lower()
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0].removesuffix(".")


def is_allowed(header: str, allowed: Collection[str]) -> bool:
    """Tell whether a Host header names one of `allowed`; `*` allows any, `*.example.com` any name below."""
    name = host_name(header)
    return any(
        pattern in ("*", name) or (pattern.startswith("*.") and name.endswith(pattern[1:]))
        for pattern in allowed
    )


def is_loopback(address: str) -> bool:
    """Tell whether an address or name is this machine's loopback."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address.lower() == "localhost"
