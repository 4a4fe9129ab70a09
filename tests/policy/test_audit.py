"""The audit: closed fields, closed reasons, and repeats that are counted."""

import json
from typing import Any

import pytest
from attrs import evolve, fields_dict
from hypothesis import given
from hypothesis import strategies as st

from qemu_usernat.policy.audit import KEYS_MAXIMUM, AuditRecord, Repeats
from qemu_usernat.policy.groups import Groups
from qemu_usernat.policy.judge import Flight, FlowRequest, Judge, Speech
from qemu_usernat.policy.redirects import HostTarget
from qemu_usernat.policy.rules import NetworkPolicy
from qemu_usernat.policy.why import Why
from qemu_usernat.primitives.errors import UserError
from qemu_usernat.primitives.time import NEVER
from tests.policy.policies import packed

RECORD = AuditRecord(
    time=1_700_000_000.25,
    guest="52:54:00:12:34:56",
    link="unix-1",
    network="lab",
    source="10.0.2.15",
    protocol="tcp",
    address="8.8.8.8",
    port=443,
    name="a.example",
    redirected="127.0.0.1:3141",
    names=("a.example",),
    speech="tls",
    verdict="allow",
    why=Why.RULE,
    rule="code",
    logged=("all",),
)


def test_a_record_is_one_line_with_all_fields() -> None:
    """A reader may rely on the list."""
    line = RECORD.to_json()
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.250Z",
        "guest": "52:54:00:12:34:56",
        "link": "unix-1",
        "network": "lab",
        "source": "10.0.2.15",
        "protocol": "tcp",
        "address": "8.8.8.8",
        "port": 443,
        "name": "a.example",
        "redirected": "127.0.0.1:3141",
        "names": ["a.example"],
        "speech": "tls",
        "verdict": "allow",
        "why": "rule",
        "rule": "code",
        "logged": ["all"],
        "enforced": True,
        "repeated": 1,
    }
    assert list(json.loads(line)) == list(fields_dict(AuditRecord))


@given(st.text(), st.sampled_from(Why), st.integers(0, 2**32).map(lambda n: n / 8))
def test_a_record_is_read_as_it_is_written(name: str, why: Why, time: float) -> None:
    """Whatever a guest puts into a name stays within its line."""
    record = evolve(RECORD, name=name, why=why, time=time)
    assert AuditRecord.from_json(record.to_json()) == record
    assert len(record.to_json().splitlines()) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"why": "because"},
        {"extra": 1},
        {"time": "yesterday"},
        {"time": 7},
        {"address": None},
        {"address": "a.example"},
        {"verdict": "log"},
        {"port": 65536},
        {"port": None},
        {"speech": "french"},
        {"guest": None},
        {"names": None},
        {"names": [7]},
        {"name": 7},
    ],
)
def test_what_is_no_record_is_refused(change: dict[str, object]) -> None:
    """An unknown field, a reason that is not on the list, an address that is none."""
    with pytest.raises(UserError, match="is no record of an audit"):
        AuditRecord.from_json(json.dumps(json.loads(RECORD.to_json()) | change))


@pytest.mark.parametrize(
    "line", ["", "{}", "[]", "7", "null", "{", '{"time": "2023-11-14T22:13:20Z"}']
)
def test_what_is_no_line_is_refused(line: str) -> None:
    """Nothing but a mistake of the user comes of it."""
    with pytest.raises(UserError, match="is no record of an audit"):
        AuditRecord.from_json(line)


def test_the_first_is_told_at_once_and_the_rest_once_a_minute() -> None:
    """A thousand attempts are two records, and none is lost."""
    repeats = Repeats()
    assert repeats.deadline() == NEVER
    assert repeats.on_record(RECORD, 0.0) == [RECORD]
    assert [repeats.on_record(RECORD, n / 20) for n in range(1, 1000)] == [[]] * 999
    assert repeats.deadline() == 60.0
    assert repeats.on_deadline(59.9) == []
    assert repeats.on_deadline(60.0) == [evolve(RECORD, repeated=999)]
    assert repeats.on_record(RECORD, 61.0) == []
    assert repeats.on_deadline(120.0) == [evolve(RECORD, repeated=1)]
    assert repeats.on_deadline(180.0) == []
    assert repeats.deadline() == NEVER
    assert repeats.on_record(RECORD, 181.0) == [RECORD]


def test_the_record_of_repeats_is_the_last_one() -> None:
    """With its time and its name."""
    repeats = Repeats()
    repeats.on_record(RECORD, 0.0)
    last = evolve(RECORD, time=RECORD.time + 9, name="b.example")
    repeats.on_record(last, 9.0)
    assert repeats.on_deadline(60.0) == [last]


@pytest.mark.parametrize(
    "change",
    [
        {"guest": "52:54:00:12:34:57"},
        {"protocol": "udp"},
        {"address": "8.8.8.9"},
        {"port": 80},
        {"verdict": "deny"},
        {"why": Why.PIN},
        {"rule": None},
    ],
)
def test_what_differs_is_told_apart(change: dict[str, object]) -> None:
    """Guest, place, verdict and reason make a record one of its own."""
    repeats = Repeats()
    repeats.on_record(RECORD, 0.0)
    other = AuditRecord.from_json(RECORD.to_json())
    for key, value in change.items():
        object.__setattr__(other, key, value)
    assert repeats.on_record(other, 1.0) == [other]


def test_questions_are_told_apart_by_their_names() -> None:
    """Of a flow to one place the name does not matter, of a question it is all there is."""
    repeats = Repeats()
    question = evolve(RECORD, protocol="dns", address=None, port=0)
    assert len(repeats.on_record(question, 0.0)) == 1
    assert len(repeats.on_record(evolve(question, name="b.example"), 0.0)) == 1
    assert len(repeats.on_record(evolve(question, name="b.example"), 0.0)) == 0


def test_the_end_tells_what_was_not_told() -> None:
    """Nothing is lost when the audit ends within a minute."""
    repeats = Repeats()
    repeats.on_record(RECORD, 0.0)
    assert repeats.finish() == []
    repeats.on_record(RECORD, 0.0)
    repeats.on_record(RECORD, 1.0)
    assert repeats.finish() == [RECORD]
    assert repeats.deadline() == NEVER


def test_memory_is_bounded_and_what_is_forgotten_is_told() -> None:
    """A guest that scans all ports costs no more than a fixed number of keys."""
    repeats = Repeats()
    for _ in range(2):
        repeats.on_record(evolve(RECORD, port=0), 0.0)
    told = [
        record
        for port in range(1, 2 * KEYS_MAXIMUM)
        for record in repeats.on_record(evolve(RECORD, port=port), 0.0)
    ]
    assert len(told) == 2 * KEYS_MAXIMUM  # each port once, and the repeat of the first
    assert len(repeats._watched) == KEYS_MAXIMUM


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 50)), max_size=60))
def test_the_numbers_add_up(seen: list[tuple[int, float]]) -> None:
    """Whatever comes and when: what is told of is as often as it was seen."""
    repeats = Repeats()
    now, told = 0.0, list[AuditRecord]()
    for port, later in seen:
        now += later
        told += repeats.on_record(evolve(RECORD, port=port), now)
    told += repeats.finish()
    for port in range(6):
        count = sum(record.repeated for record in told if record.port == port)
        assert count == sum(each == port for each, _ in seen)


def test_a_verdict_becomes_a_record() -> None:
    """What was judged, what the guest said, and the rule by its name or its text."""
    policy = NetworkPolicy.deny_all().rule("log any").allow_https("a.example").named("code")
    request = FlowRequest(
        "tcp",
        packed("8.8.8.8"),
        443,
        frozenset({"a.example"}),
        Flight(Speech.TLS, "a.example"),
        HostTarget(packed("127.0.0.1"), 3141),
    )
    who: dict[str, Any] = {"guest": RECORD.guest, "link": RECORD.link, "source": RECORD.source}
    who["network"] = RECORD.network
    record = AuditRecord.of(
        request, Judge(policy, Groups()).judge(request), time=RECORD.time, **who
    )
    assert record == evolve(RECORD, logged=("log any",))
    wordless = evolve(request, flight=Flight(), names=frozenset())
    verdict = Judge(policy, Groups()).judge(wordless)
    record = AuditRecord.of(wordless, verdict, time=0.0, enforced=False, **who)
    assert (record.name, record.speech, record.rule, record.enforced) == (None, None, None, False)
    question = FlowRequest("dns", b"", 53)
    asked = Judge(policy, Groups()).judge_name("b.example")
    record = AuditRecord.of(question, asked, time=0.0, asked="b.example", **who)
    assert (record.address, record.name, record.verdict) == (None, "b.example", "deny")


@pytest.mark.parametrize("protocol", ["udp", "icmp"])
def test_who_has_no_stream_speaks_nothing(protocol: str) -> None:
    """Between guests all is judged as if it spoke of no name; of a datagram that is no news."""
    request = FlowRequest(protocol, packed("10.0.2.16"), 7, flight=Flight(Speech.OTHER))
    verdict = Judge(NetworkPolicy.allow_all(), Groups()).judge(request)
    who: dict[str, Any] = {"guest": RECORD.guest, "link": RECORD.link, "source": RECORD.source}
    assert AuditRecord.of(request, verdict, time=0.0, **who).speech is None
