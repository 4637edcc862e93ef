"""Which Host names are let in, and which addresses are this machine's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.hosts import LOOPBACK_NAMES, host_name, is_allowed, is_loopback


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("localhost", "localhost"),
        ("LocalHost:2024", "localhost"),
        ("localhost.", "localhost"),
        ("[::1]:2024", "::1"),
        ("[::1]", "::1"),
        ("127.0.0.1:2024", "127.0.0.1"),
        ("", ""),
        (":80", ""),
    ],
)
def test_the_name_in_a_host_header(header: str, name: str) -> None:
    assert host_name(header) == name


@pytest.mark.parametrize(
    "header",
    ["evil.example", "localhost.evil.example", "evil-localhost", "127.0.0.1.nip.io", "", "[::2]", "0.0.0.0"],
)
def test_other_names_are_not_loopback(header: str) -> None:
    assert not is_allowed(header, LOOPBACK_NAMES)


def test_patterns_allow_names_below_but_not_the_name_itself_nor_its_look_alikes() -> None:
    allowed = {"*.example.com"}
    assert is_allowed("a.example.com:443", allowed)
    assert not is_allowed("example.com", allowed)
    assert not is_allowed("aexample.com", allowed)
    assert not is_allowed("a.example.com.evil.org", allowed)


@given(st.text())
def test_any_header_is_survived(header: str) -> None:
    assert is_allowed(header, {"*"})
    is_allowed(header, LOOPBACK_NAMES)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_addresses(address: str) -> None:
    assert is_loopback(address)


@pytest.mark.parametrize("address", ["", "0.0.0.0", "::", "10.0.0.1", "localhost.evil", "127.0.0.1.evil"])
def test_other_addresses_are_not_loopback(address: str) -> None:
    assert not is_loopback(address)
