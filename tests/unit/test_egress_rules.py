"""Which hosts sandboxes may reach, whatever way they are spelt, and which addresses those may have."""

import ipaddress
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sandbox.egress_rules import Rule, is_public, normalise_name, parse_rules, split_target
from sandbox.settings import SandboxSettings

PRIVATE_NETWORKS = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
]
WITH_AN_IPV4_ADDRESS_IN_IT = ["::ffff:{}", "::{}", "64:ff9b::{}", "64:ff9b:1::{}", "2002:{hex}::1"]


def covered(rules: str, host: str) -> bool:
    return any(rule.covers(host) for rule in parse_rules(rules))


@pytest.mark.parametrize(
    ("entry", "rule"),
    [
        ("pypi.org", Rule("pypi.org", 443)),
        ("PyPI.org.", Rule("pypi.org", 443)),
        ("bücher.example", Rule("xn--bcher-kva.example", 443)),
        ("git.example.org:8443", Rule("git.example.org", 8443)),
        ("*.example.org", Rule("example.org", 443, is_wildcard=True)),
        ("mirror.lan=10.0.0.5", Rule("mirror.lan", 443, address=ip_address("10.0.0.5"))),
        ("mirror.lan:8443=[fd00::5]", Rule("mirror.lan", 8443, address=ip_address("fd00::5"))),
        ("10.0.0.6:8443", Rule("10.0.0.6", 8443, address=ip_address("10.0.0.6"))),
        ("[FD00::6]", Rule("fd00::6", 443, address=ip_address("fd00::6"))),
    ],
)
def test_an_entry_says_host_port_and_address(entry: str, rule: Rule) -> None:
    assert parse_rules(f" {entry} ,") == (rule,)


@pytest.mark.parametrize(
    "entry",
    [
        "*",
        "*.",
        "*.*.org",
        "pypi.*",
        "https://pypi.org",
        "pypi.org/simple",
        "pypi.org:0",
        "pypi.org:65536",
        "pypi.org:https",
        "pypi.org:443:443",
        "user@pypi.org",
        "pypi..org",
        "two words",
        "*.example.org=10.0.0.5",
        "10.0.0.5=10.0.0.6",
        "mirror.lan=elsewhere.lan",
        "fd00::6",
        "[fe80::1%eth0]",
        "127.1",
        "0x7f000001",
        "2130706433",
    ],
)
def test_an_entry_that_says_something_else_stops_the_start(entry: str) -> None:
    with pytest.raises(ValidationError) as wrong:
        SandboxSettings.model_validate({"sandbox_egress_allow": f"pypi.org,{entry}"})
    assert entry in str(wrong.value)


@pytest.mark.parametrize(
    ("host", "is_covered"),
    [
        ("pypi.org", True),
        ("pypi.org.evil.example", False),
        ("evilpypi.org", False),
        ("files.pypi.org", False),
        ("a.example.org", True),
        ("a.b.example.org", True),
        ("example.org", False),
        ("evilexample.org", False),
        ("example.org.evil.example", False),
    ],
)
def test_names_that_merely_look_like_an_allowed_one_are_others(host: str, is_covered: bool) -> None:
    assert covered("pypi.org,*.example.org", host) is is_covered


@pytest.mark.parametrize(
    "target", ["pypi.org:443", "PYPI.ORG:443", "pypi.org.:443", "pypi。org:443", "\uff50ypi.org:443"]
)
def test_another_spelling_of_an_allowed_name_is_that_name(target: str) -> None:
    assert split_target(target) == ("pypi.org", 443)


@pytest.mark.parametrize(
    "target",
    [
        "",
        ":",
        ":443",
        "pypi.org",
        "pypi.org:",
        "pypi.org:-1",
        "pypi.org:+443",
        "pypi.org: 443",
        "pypi.org:0443",
        "pypi.org:٤٤٣",
        "pypi.org:443\n",
        "pypi.org\0:443",
        "pypi.org\r\nHost: evil.example:443",
        "pypi.org#.evil.example:443",
        "user@pypi.org:443",
        ".pypi.org:443",
        "-pypi.org:443",
        "pypi.org..:443",
        "127.1:443",
        "0x7f.0.0.1:443",
        "0177.0.0.1:443",
        "\uff11\uff12\uff17.1:443",
        "::1:443",
        "[::1:443",
        "[fe80::1%25eth0]:443",
        "[127.0.0.1]:443",
        "xn--" + "a" * 60 + ".org:443",
        "a" * 64 + ".org:443",
        "a." * 127 + "org:443",
    ],
)
def test_what_is_no_host_and_port_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        split_target(target)


@given(st.text(max_size=300))
def test_a_name_is_refused_or_has_one_harmless_form(text: str) -> None:
    try:
        name = normalise_name(text)
    except ValueError:
        return
    assert normalise_name(name) == name
    assert name.isascii()
    assert name == name.lower()
    assert not set(name) & set(" \0\r\n:/@#?%[]*,=")
    with pytest.raises(ValueError, match="address"):
        ip_address(name)


@given(st.binary(max_size=300))
def test_no_target_of_hostile_code_breaks_the_parser(target: bytes) -> None:
    try:
        host, port = split_target(target.decode())
    except ValueError:
        return
    assert 1 <= port <= 65535
    assert host


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "151.101.0.223", "2606:4700::6810:84e5", "2a04:4e42::223", "64:ff9b::808:808"],
)
def test_an_address_on_the_internet_is_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        pytest.param("169.254.169.254", id="AWS, GCP, Azure metadata"),
        pytest.param("fd00:ec2::254", id="AWS metadata over IPv6"),
        pytest.param("168.63.129.16", id="Azure's wire server"),
        pytest.param("100.100.100.200", id="Alibaba metadata"),
        pytest.param("192.0.0.192", id="Oracle metadata"),
        pytest.param("::", id="unspecified"),
        pytest.param("::1", id="loopback"),
        pytest.param("fe80::1", id="link-local"),
        pytest.param("fe80::1%eth0", id="link-local with a scope"),
        pytest.param("fec0::1", id="site-local"),
        pytest.param("fc00::1", id="unique local"),
        pytest.param("ff02::1", id="multicast"),
        pytest.param("ff0e::1", id="global multicast"),
        pytest.param("2001:db8::1", id="documentation"),
        pytest.param("3fff::1", id="newer documentation"),
        pytest.param("2001:0:a00:1::1", id="Teredo"),
        pytest.param("5f00::1", id="segment routing"),
        pytest.param("192.88.99.1", id="6to4 relay"),
    ],
)
def test_an_address_near_the_server_is_not(address: str) -> None:
    assert not is_public(ip_address(address))


@given(st.sampled_from(PRIVATE_NETWORKS).map(ipaddress.IPv4Network), st.data())
def test_no_private_ipv4_address_is_public_in_any_disguise(
    network: ipaddress.IPv4Network, data: st.DataObject
) -> None:
    number = data.draw(st.integers(int(network[0]), int(network[-1])))
    address = ipaddress.IPv4Address(number)
    assert not is_public(address)
    for disguise in WITH_AN_IPV4_ADDRESS_IN_IT:
        digits = f"{number >> 16:x}:{number & 0xFFFF:x}"
        assert not is_public(ip_address(disguise.format(address, hex=digits))), disguise


@given(st.ip_addresses(v=6).filter(lambda it: it not in ipaddress.IPv6Network("2000::/3")))
def test_no_ipv6_address_outside_of_the_internets_space_is_public(address: ipaddress.IPv6Address) -> None:
    assert not is_public(address) or address in ipaddress.IPv6Network("64:ff9b::/96")
