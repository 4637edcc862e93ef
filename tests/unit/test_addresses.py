"""A client's address is the connection's own, and only a trusted proxy may say otherwise."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth.addresses import UNKNOWN, client_address, client_of, subject_of
from auth.settings import AuthSettings

PROXIES = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8"))
ATTACKER = "203.0.113.9"


def forwarded(*values: str) -> list[tuple[bytes, bytes]]:
    return [(b"x-forwarded-for", value.encode("latin-1", "replace")) for value in values]


@pytest.mark.parametrize(
    ("entries", "address"),
    [
        ([], "10.0.0.1"),
        (["203.0.113.9"], "203.0.113.9"),
        (["198.51.100.1, 203.0.113.9"], "203.0.113.9"),
        (["198.51.100.1", "203.0.113.9"], "203.0.113.9"),
        (["203.0.113.9, 10.0.0.7"], "203.0.113.9"),
        (["203.0.113.9, fd00::7 , 10.0.0.7"], "203.0.113.9"),
        (["203.0.113.9:4711"], "203.0.113.9"),
        (["[2001:db8::1]:4711"], "2001:db8::1"),
        (["2001:DB8:0:0::1"], "2001:db8::1"),
        (["::ffff:203.0.113.9"], "203.0.113.9"),
        (["fe80::1%eth0"], "fe80::1"),
        (["10.1.1.1, 10.0.0.7"], "10.1.1.1"),
        (["203.0.113.9, unknown"], "10.0.0.1"),
        (["203.0.113.9, , 10.0.0.7"], "10.0.0.7"),
        (["203.0.113.9,"], "10.0.0.1"),
        ([""], "10.0.0.1"),
    ],
)
def test_behind_a_trusted_proxy_it_is_the_last_entry_that_is_no_proxy(
    entries: list[str], address: str
) -> None:
    assert client_address("10.0.0.1", forwarded(*entries), PROXIES) == address


@given(st.lists(st.text()), st.ip_addresses().filter(lambda one: not any(one in net for net in PROXIES)))
def test_who_is_no_trusted_proxy_cannot_say_anything(headers: list[str], peer: ipaddress.IPv4Address) -> None:
    assert client_address(str(peer), forwarded(*headers), PROXIES) == client_address(str(peer), [], PROXIES)
    assert client_address("10.0.0.1", forwarded(*headers), ()) == "10.0.0.1"


@given(st.lists(st.one_of(st.text(), st.ip_addresses().map(str))))
def test_what_a_client_claims_never_counts_before_what_the_proxy_adds(claims: list[str]) -> None:
    headers = forwarded(*claims, ATTACKER)
    assert client_address("10.0.0.1", headers, PROXIES) == ATTACKER
    assert client_address("10.0.0.1", forwarded(", ".join([*claims, ATTACKER])), PROXIES) == ATTACKER


@given(st.one_of(st.none(), st.text(), st.ip_addresses().map(str)), st.lists(st.binary()))
def test_any_bytes_give_an_address(peer: str | None, values: list[bytes]) -> None:
    address = client_address(peer, [(b"x-forwarded-for", value) for value in values], PROXIES)
    assert address == UNKNOWN or str(ipaddress.ip_address(address)) == address


def test_thousands_of_forged_proxies_are_not_read() -> None:
    headers = forwarded(", ".join([ATTACKER, *["10.9.9.9"] * 20_000]))
    assert client_address("10.0.0.1", headers, PROXIES) == "10.9.9.9"


def test_a_whole_ipv6_network_counts_as_one() -> None:
    assert subject_of("2001:db8:1:2::1") == subject_of("2001:db8:1:2:ffff::9") == "2001:db8:1:2::/64"
    assert subject_of("2001:db8:1:3::1") != subject_of("2001:db8:1:2::1")
    assert subject_of("203.0.113.9") == "203.0.113.9"
    assert subject_of(UNKNOWN) == UNKNOWN


@pytest.mark.parametrize("client", [None, (), ["", 0], ("not an address", 0)])
def test_a_peer_without_an_address_is_unknown(client: object) -> None:
    assert client_of({"client": client, "headers": forwarded(ATTACKER)}, PROXIES) == UNKNOWN


def test_trusted_proxies_are_addresses_and_networks_separated_by_commas(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRUSTED_PROXIES", "127.0.0.1, fd00::/8,")
    assert [str(one) for one in AuthSettings().trusted_proxies] == ["127.0.0.1/32", "fd00::/8"]


@pytest.mark.parametrize("value", ["nginx", "10.0.0.1/8", "*", "10.0.0.0/33"])
def test_a_proxy_that_cannot_be_read_stops_the_start(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("TRUSTED_PROXIES", value)
    with pytest.raises(ValueError, match="trusted_proxies"):
        AuthSettings()
