"""Places and services as people write them, and as people who want to get past write them."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu_usernat.policy.places import (
    AnyPlace,
    DnsPlace,
    GroupPlace,
    NamePlace,
    NetworkPlace,
    Place,
    RangePlace,
    Service,
    normalised,
    parse_name,
    parse_place,
    parse_service,
)
from qemu_usernat.primitives.errors import UserError
from tests.policy.policies import places, services


def network(text: str) -> NetworkPlace:
    """A network as a place."""
    return NetworkPlace(ip_network(text))


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("10.0.0.0/8", network("10.0.0.0/8")),
        (" 192.0.2.7 ", network("192.0.2.7/32")),
        ("2001:DB8::/32", network("2001:db8::/32")),
        ("::", network("::/128")),
        ("10.0.0.1-10.0.0.9", RangePlace(ip_address("10.0.0.1"), ip_address("10.0.0.9"))),
        ("10.0.0.1 - 10.0.0.9", RangePlace(ip_address("10.0.0.1"), ip_address("10.0.0.9"))),
        ("10.0.0.1-10.0.0.1", network("10.0.0.1")),
        ("fd00::1-fd00::f", RangePlace(ip_address("fd00::1"), ip_address("fd00::f"))),
        ("::ffff:10.0.0.0/104", network("10.0.0.0/8")),
        ("::ffff:10.0.0.1", network("10.0.0.1")),
        ("64:ff9b::8.8.8.8", network("8.8.8.8")),
        ("::ffff:1.2.3.4-::ffff:1.2.3.9", RangePlace(ip_address("1.2.3.4"), ip_address("1.2.3.9"))),
        ("PyPI.org.", NamePlace("pypi.org")),
        ("*.GitHub.com.", NamePlace("github.com", True)),
        ("_dmarc.example.com", NamePlace("_dmarc.example.com")),
        ("Bücher.example", NamePlace("xn--bcher-kva.example")),
        ("*.bücher.example", NamePlace("xn--bcher-kva.example", True)),
        ("straße.example", NamePlace("xn--strae-oqa.example")),
        ("pypi。org", NamePlace("pypi.org")),
        ("1.2.3.4.example", NamePlace("1.2.3.4.example")),
        ("intranet", NamePlace("intranet")),
        ("Any", AnyPlace()),
        ("DNS", DnsPlace()),
        ("Link-Local", GroupPlace("link-local")),
    ],
)
def test_places_are_read_as_they_are_meant(text: str, place: Place) -> None:
    """Capitals, final dots, other scripts and wrapped addresses change nothing."""
    assert parse_place(text) == place


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "1 to 253 letters"),
        ("*", "no label"),
        ("*.", "1 to 253 letters"),
        ("*.com", "whole top-level domain"),
        ("*.COM.", "whole top-level domain"),
        ("*.*.example.com", "no label"),
        ("a.*.example.com", "no label"),
        ("*example.com", "no label"),
        (".example.com", "no label"),
        ("example..com", "no label"),
        ("example.com..", "no label"),
        ("-a.example", "no label"),
        ("a" * 64 + ".example", "no label"),
        ("a." * 127 + "a", "1 to 253 letters"),
        ("pypi.org:443", "no label"),
        ("https://pypi.org", "no label"),
        ("pypi.org, github.com", "no label"),
        ("x\0.example", "no label"),
        ("10.0.0.1/8", "host bits"),
        ("10.0.0.0/33", "no network"),
        ("10.0.0", "no network"),
        ("10.0.0.1.", "no network"),
        ("010.0.0.1", "no network"),
        ("10.0.0.0/255.0.0.0", "no label"),
        ("0x7f.1", "end in a number"),
        ("0x7f.0x1", "end in a number"),
        ("foo.42", "end in a number"),
        ("2130706433", "no network"),
        ("10.0.0.9-10.0.0.1", "smaller address first"),
        ("255.255.255.255-0.0.0.0", "smaller address first"),
        ("10.0.0.1-::1", "one version"),
        ("10.0.0.1-", "no range"),
        ("10.0.0.1-10.0.0.0/24", "no range"),
        ("fe80::1%eth0", "no label"),
        ("privat", 'did you mean "private"'),
        ("pubic", 'did you mean "public"'),
        ("any.", 'did you mean "any"'),
        ("host.", 'did you mean "host"'),
    ],
)
def test_what_is_no_place_does_not_load(text: str, words: str) -> None:
    """It is said what is wrong; nothing becomes a rule that never matches, or always."""
    with pytest.raises(UserError, match=words.replace("?", r"\?")):
        parse_place(text)


def test_a_name_is_never_an_address_or_a_group() -> None:
    """Where only names are taken, a network is refused."""
    for text in ("10.0.0.1", "any", "public", "dns"):
        with pytest.raises(UserError):
            parse_name(text)


def test_a_suffix_without_its_dot_matches_nothing() -> None:
    """evilgithub.com is not below github.com, nor is github.com itself."""
    place = parse_name("*.github.com")
    matched = [
        name
        for name in (
            "github.com",
            "evilgithub.com",
            "api.github.com",
            "a.b.github.com",
            "github.com.evil.example",
            "xgithub.com",
        )
        if place.matches(name)
    ]
    assert matched == ["api.github.com", "a.b.github.com"]


@given(st.text())
def test_any_text_is_a_normal_name_or_none(text: str) -> None:
    """What is normal stays as it is; all else is refused in one way."""
    try:
        name = normalised(text)
    except ValueError:
        return
    assert normalised(name) == name
    assert normalised(name.upper() + ".") == name


@given(places())
def test_a_place_is_read_as_it_is_written(place: Place) -> None:
    """Also wildcards and ranges."""
    assert parse_place(str(place)) == place


@given(services())
def test_a_service_is_read_as_it_is_written(service: Service) -> None:
    """With and without ports."""
    assert parse_service(str(service)) == service


@pytest.mark.parametrize(
    ("text", "service"),
    [
        ("tcp/443", Service("tcp", 443, 443)),
        ("UDP/1000-2000", Service("udp", 1000, 2000)),
        ("443", Service(None, 443, 443)),
        ("0-65535", Service(None)),
        ("tcp", Service("tcp")),
        ("tcp/0-65535", Service("tcp")),
        ("icmp", Service("icmp")),
    ],
)
def test_services_are_read_as_they_are_meant(text: str, service: Service) -> None:
    """A protocol, a port or both."""
    assert parse_service(text) == service


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sctp",
        "tcp/",
        "tcp/65536",
        "tcp/9-1",
        "tcp/443-",
        "icmp/8",
        "tcp 443",
        "-1",
        "tcp/٤٤٣",
        "https",
        "443/tcp",
    ],
)
def test_what_is_no_service_does_not_load(text: str) -> None:
    """And what is allowed is said."""
    with pytest.raises(UserError, match=r'allowed: "tcp/443"'):
        parse_service(text)


def test_values_made_by_hand_are_checked_alike() -> None:
    """An object says no more than its text can."""
    with pytest.raises(UserError):
        Service("icmp", 1, 2)
    with pytest.raises(UserError):
        Service("sctp")
    with pytest.raises(UserError):
        GroupPlace("nobody")
    with pytest.raises(UserError):
        NamePlace("com", True)
    assert NamePlace("PyPI.org.") == NamePlace("pypi.org")
