"""A flow as a person writes it."""

import pytest

from qemu_usernat.policy.flows import WrittenFlow, parse_flow
from qemu_usernat.primitives.errors import UserError
from tests.policy.policies import packed


@pytest.mark.parametrize(
    ("text", "flow"),
    [
        ("tcp github.com:443", WrittenFlow("tcp", 443, "github.com")),
        ("tcp  GitHub.com.:443 ", WrittenFlow("tcp", 443, "github.com")),
        ("udp 192.0.2.7:53", WrittenFlow("udp", 53, address=packed("192.0.2.7"))),
        ("tcp [2001:db8::1]:22", WrittenFlow("tcp", 22, address=packed("2001:db8::1"))),
        ("icmp 2001:db8::1", WrittenFlow("icmp", 0, address=packed("2001:db8::1"))),
        ("icmp a.example", WrittenFlow("icmp", 0, "a.example")),
        ("dns a.example", WrittenFlow("dns", 0, "a.example")),
    ],
)
def test_a_flow_is_read_as_it_is_meant(text: str, flow: WrittenFlow) -> None:
    """And it is written as it is read."""
    assert parse_flow(text) == flow
    assert parse_flow(str(flow)) == flow


@pytest.mark.parametrize(
    "text",
    [
        "",
        "github.com:443",
        "tcp github.com",
        "tcp github.com:",
        "tcp a.example:65536",
        "tcp ::1:22",
        "icmp a.example:1",
        "dns 192.0.2.7",
        "sctp a.example:1",
        "tcp *.a.example:1",
        "tcp [a]b:1",
    ],
)
def test_what_is_no_flow_is_refused(text: str) -> None:
    """With what would be one."""
    with pytest.raises(UserError, match=r'allowed: "tcp github\.com:443"'):
        parse_flow(text)


def test_a_name_may_be_given_its_address() -> None:
    """Only a name, and only an address."""
    assert parse_flow("tcp a.example:1").at("8.8.8.8").address == packed("8.8.8.8")
    assert parse_flow("tcp a.example:1").at(None) == parse_flow("tcp a.example:1")
    for text, address in (("tcp 8.8.8.8:1", "8.8.8.8"), ("tcp a.example:1", "b.example")):
        with pytest.raises(UserError):
            parse_flow(text).at(address)
