"""Virtual machines, and their whole internet, inside a test.

For trio: `VirtualNetwork`, `VirtualMachine`, `VmConsole`, and `FakeGuest`, a guest without QEMU.
For plain functions and `unittest`: `qemu_usernat.testing.blocking`. For pytest there are fixtures,
see `qemu_usernat.pytest_plugin`. For all: `Internet`, `GuestImage`, `Capture`, `Faults`, and
the filters of frames. The tutorial is docs/testing.md.

Nothing that runs in production imports this.
"""

from qemu_usernat.config.network import Network as NetworkSettings
from qemu_usernat.testing.capture import Capture
from qemu_usernat.testing.console import (
    CommandResult,
    CommandTimeout,
    ConsoleLost,
    VmConsole,
    WaitTimeout,
)
from qemu_usernat.testing.fake_guest import FakeGuest
from qemu_usernat.testing.faults import Faults, Rule
from qemu_usernat.testing.filters import (
    Filter,
    anything,
    arp,
    dhcp,
    dns,
    eth,
    from_guest,
    guest,
    icmp,
    ip,
    length,
    malformed,
    tcp,
    to_guest,
    udp,
    unknown,
)
from qemu_usernat.testing.frames import Frame
from qemu_usernat.testing.guest_image import GuestImage
from qemu_usernat.testing.internet import (
    HostStream,
    Internet,
    InternetHost,
    Request,
    Response,
)
from qemu_usernat.testing.network import VirtualNetwork
from qemu_usernat.testing.qmp import QmpError, QmpEvent, QmpLost
from qemu_usernat.testing.records import FlowRecord, Outcome, Records, Verdict
from qemu_usernat.testing.virtual_machine import VirtualMachine
from qemu_usernat.testing.wire import Wire

__all__ = [
    "Capture",
    "CommandResult",
    "CommandTimeout",
    "ConsoleLost",
    "FakeGuest",
    "Faults",
    "Filter",
    "FlowRecord",
    "Frame",
    "GuestImage",
    "HostStream",
    "Internet",
    "InternetHost",
    "NetworkSettings",
    "Outcome",
    "QmpError",
    "QmpEvent",
    "QmpLost",
    "Records",
    "Request",
    "Response",
    "Rule",
    "Verdict",
    "VirtualMachine",
    "VirtualNetwork",
    "VmConsole",
    "WaitTimeout",
    "Wire",
    "anything",
    "arp",
    "dhcp",
    "dns",
    "eth",
    "from_guest",
    "guest",
    "icmp",
    "ip",
    "length",
    "malformed",
    "tcp",
    "to_guest",
    "udp",
    "unknown",
]
