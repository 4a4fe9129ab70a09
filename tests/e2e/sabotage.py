"""A plugin that switches off, in the server, what each test is about: no such test may pass.

pytest -p tests.e2e.sabotage tests/e2e/test_core.py
SABOTAGE="a judge that always allows" pytest -p tests.e2e.sabotage tests/e2e/test_policy.py
"""

import os
from collections.abc import Callable, Iterator

import pytest
import trio

from qemu_usernat.admission import Admission
from qemu_usernat.arrivals import Arrivals, Caller
from qemu_usernat.delivery import Delivery
from qemu_usernat.gateway.arp import ArpResponder
from qemu_usernat.gateway.dhcp import DhcpServer
from qemu_usernat.gateway.dns import DnsForwarder
from qemu_usernat.gateway.dns_zone import Zone
from qemu_usernat.gateway.icmp import EchoResponder
from qemu_usernat.lan.joins import Joins
from qemu_usernat.lan.switch import Switch
from qemu_usernat.lan_gate import LanGate
from qemu_usernat.nat.tcp.flow import TcpFlow
from qemu_usernat.policy.judge import Judge, Verdict
from qemu_usernat.policy.rules import ALLOW
from qemu_usernat.policy.why import Why
from qemu_usernat.testing import InternetHost
from qemu_usernat.testing.internet.echo import EchoHost
from qemu_usernat.testing.internet.faults import Fault
from qemu_usernat.testing.internet.world import InternetWorld
from qemu_usernat.visits import Visits


def _refuse(world: InternetWorld, flow: TcpFlow, *_: object) -> None:
    flow.on_host_failed(None, trio.current_time())


def _swallow(*_: object) -> Fault:
    return Fault.BLACK_HOLE


def _turn_away(_: Arrivals, caller: Caller, *__: object) -> None:
    caller.reset()


def _nothing(*_: object, **__: object) -> None:
    return None


def _true(*_: object, **__: object) -> bool:
    return True


def _false(*_: object, **__: object) -> bool:
    return False


FEATURES: dict[str, list[tuple[type, str, Callable[..., object]]]] = {
    "arp": [(ArpResponder, "answer", _nothing)],
    "dhcp": [(DhcpServer, "answer", _nothing)],
    "dns": [(DnsForwarder, "on_query", _true)],
    "icmp errors": [(Delivery, "quoting", _nothing)],
    "joins": [(Joins, "on_frame", _nothing)],
    "lan": [(Switch, "_may_reach_guests", _false)],
    "lan policy": [(LanGate, "_lets_pass", _true)],
    "names of guests": [(Zone, "_guest_named", _nothing)],
    "published tcp": [(Arrivals, "on_caller", _turn_away)],
    "published udp": [(Visits, "on_client", _nothing)],
    "ping of the gateway": [(EchoResponder, "answer", _nothing)],
    "ping": [(EchoHost, "send", _nothing)],
    "refusal": [(InternetHost, "answer", _swallow)],
    "tcp": [(InternetWorld, "dial", _refuse)],
    "udp": [(InternetHost, "answer", _swallow)],
}
"""What of the server each of them is."""


def _allowed(*_: object) -> Verdict:
    return Verdict(ALLOW, Why.DEFAULT)


def _without(admission: Admission, settings: object) -> None:
    _replace(admission, None)


_replace = Admission.replace

POLICIES: dict[str, list[tuple[type, str, Callable[..., object]]]] = {
    "a judge that always allows": [
        (Judge, "judge", _allowed),
        (Judge, "judge_name", _allowed),
    ],
    "a policy that is not passed on": [(Admission, "replace", _without)],
}
"""How a policy may be none."""


@pytest.fixture(autouse=True)
def _switched_off(request: pytest.FixtureRequest) -> Iterator[None]:
    marker = request.node.get_closest_marker("feature")
    parts = FEATURES[marker.args[0]] if marker else POLICIES[os.environ["SABOTAGE"]]
    with pytest.MonkeyPatch.context() as patch:
        for owner, name, replacement in parts:
            patch.setattr(owner, name, replacement)
        yield
