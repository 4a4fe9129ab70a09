"""Learn: a policy that admits what was seen."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu_usernat.policy.audit import AuditRecord
from qemu_usernat.policy.groups import is_martian
from qemu_usernat.policy.judge import Flight, FlowRequest, Judge, Speech, Why
from qemu_usernat.policy.learn import learn, learn_file
from qemu_usernat.policy.rules import ALLOW, NetworkPolicy
from qemu_usernat.policy.settings import read_settings
from qemu_usernat.primitives.errors import UserError
from tests.policy.policies import ADDRESSES, GROUPS_HERE, NAMES, PORTS, packed, requests


def record(protocol: str, address: str | None, port: int = 0, **more: Any) -> AuditRecord:
    """What an audit tells of a flow."""
    rest: dict[str, Any] = {"verdict": "deny", "why": Why.DEFAULT, "enforced": False} | more
    return AuditRecord(
        time=0.0,
        guest="52:54:00:12:34:56",
        link="a",
        protocol=protocol,
        address=address,
        port=port,
        **rest,
    )


def learned(*records: AuditRecord) -> list[str]:
    """The lines of the policy."""
    return str(learn(records, GROUPS_HERE).policy).splitlines()


def test_names_come_before_addresses_and_ports_are_exact() -> None:
    """What has a name is admitted by it; the rest by address; and places share rules."""
    assert learned(
        record("tcp", "8.8.8.8", 443, names=("a.example",), name="a.example", speech="tls"),
        record("tcp", "8.8.8.8", 443, names=("b.example",), name="b.example", speech="tls"),
        record("tcp", "8.8.8.9", 80, names=("b.example",), name="b.example", speech="http"),
        record("tcp", "9.9.9.9", 22),
        record("udp", "9.9.9.9", 123),
        record("icmp", "9.9.9.9"),
        record("udp", "8.8.8.8", 123, names=("time.example",)),
        record("tcp", "10.0.2.2", 8000),
    ) == [
        "allow a.example on tcp/443",
        "allow b.example on tcp/80, tcp/443",
        "allow time.example on udp/123",
        "allow 9.9.9.9 on icmp, tcp/22, udp/123",
        "allow 10.0.2.2 on tcp/8000",
        "default deny",
    ]


def test_what_a_name_does_not_admit_is_admitted_by_its_address() -> None:
    """TLS without a name, another name than the address's, another protocol on 443."""
    assert learned(
        record("tcp", "8.8.8.8", 443, names=("a.example",), speech="tls"),
        record("tcp", "9.9.9.9", 443, names=("a.example",), speech="tls", name="b.example"),
        record("tcp", "10.0.0.1", 443, names=("a.example",), speech="tls", name="a.example"),
    ) == [
        "allow a.example on tcp/443",
        "allow 8.8.8.8, 9.9.9.9, 10.0.0.1 on tcp/443",
        "default deny",
    ]


def test_quic_to_a_name_is_left_out_and_said() -> None:
    """Clients fall back to TCP; without TCP seen, the address is admitted."""
    quic = record("udp", "8.8.8.8", 443, names=("a.example",))
    tls = record("tcp", "8.8.8.8", 443, names=("a.example",), speech="tls", name="a.example")
    found = learn([quic, tls], GROUPS_HERE)
    assert found.left_out == ("QUIC to a.example is left out: clients fall back to TCP",)
    assert str(found.policy).splitlines() == ["allow a.example on tcp/443", "default deny"]
    assert learned(quic) == ["allow 8.8.8.8 on udp/443", "default deny"]


def test_names_that_were_only_looked_up_are_said() -> None:
    """To admit all names would be a way out for data: a person may decide."""
    question = record("dns", None, 53, name="c.example")
    assert learn([question], GROUPS_HERE).left_out == ("c.example was only looked up",)


@pytest.mark.parametrize("why", [Why.SPOOFED, Why.MARTIAN, Why.NAME_SERVICE, Why.QUESTION])
def test_what_no_rule_admits_is_not_learned(why: Why) -> None:
    """A forged frame is no wish."""
    assert learned(record("udp", "8.8.8.8", 5353, why=why)) == ["default deny"]


def test_what_is_printed_is_a_file(tmp_path: Path) -> None:
    """The TOML loads, and is the policy; its remarks are comments, whatever a guest asked for."""
    audit = tmp_path / "audit"
    question = record("dns", None, 53, name="c.example\nallow = 'any'")
    lines = [record("tcp", "9.9.9.9", 22).to_json(), "", question.to_json()]
    audit.write_text("\n".join(lines))
    found = learn_file(audit, GROUPS_HERE)
    text = found.to_toml()
    assert read_settings(tomllib.loads(text)["policy"], "").policy == found.policy
    assert found.policy == NetworkPolicy.deny_all().allow_ip("9.9.9.9", on="tcp/22")


def test_a_line_that_is_none_is_told_with_its_number(tmp_path: Path) -> None:
    """And a file that is not there is told as such."""
    audit = tmp_path / "audit"
    with pytest.raises(UserError, match="cannot be read"):
        learn_file(audit, GROUPS_HERE)
    audit.write_text(record("tcp", "9.9.9.9", 22).to_json() + "\n{}\n")
    with pytest.raises(UserError, match="audit:2: is no record of an audit"):
        learn_file(audit, GROUPS_HERE)


@given(
    st.lists(
        st.builds(
            record,
            st.sampled_from(("tcp", "udp", "icmp")),
            st.sampled_from([each for each in ADDRESSES if not is_martian(packed(each))]),
            st.sampled_from(PORTS),
            names=st.lists(st.sampled_from(NAMES), max_size=2, unique=True).map(tuple),
            name=st.one_of(st.none(), st.sampled_from(NAMES)),
            speech=st.sampled_from(("tls", "http", "other", "unreadable")),
        ),
        max_size=8,
    )
)
def test_what_was_seen_is_admitted(records: list[AuditRecord]) -> None:
    """Every flow of the audit, by the judge that enforces; but QUIC, if it was left out."""
    found = learn(records, GROUPS_HERE)
    judge = Judge(found.policy, GROUPS_HERE)
    for each in records:
        says = each.name if each.speech in ("tls", "http") else None
        request = FlowRequest(
            each.protocol,
            packed(each.address or ""),
            each.port,
            frozenset(each.names),
            Flight(Speech(each.speech), says),
        )
        left_out = (each.protocol, each.port) == ("udp", 443) and found.left_out
        assert judge.judge(request).action == ALLOW or left_out


@given(requests().filter(lambda request: not is_martian(request.destination)))
def test_what_was_judged_is_learned_through_its_line(request: FlowRequest) -> None:
    """From the verdict by way of the file to a policy that admits the very same."""
    verdict = Judge(NetworkPolicy.deny_all(), GROUPS_HERE).judge(request)
    told = AuditRecord.of(request, verdict, time=0.0, guest="52:54:00:12:34:56", link="a")
    found = learn([AuditRecord.from_json(told.to_json())], GROUPS_HERE)
    assert Judge(found.policy, GROUPS_HERE).judge(request).action == ALLOW
