"""qemu_usernat: user-mode networking for virtual machines, as a server in Python.

QEMU's ``-netdev stream`` connects to a socket of ours; the guest gets an address,
names, and TCP and UDP to the world, with no privileges on the host.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qemu_usernat.app import running
    from qemu_usernat.config.configuration import read_config
    from qemu_usernat.policy.rules import NetworkPolicy
    from qemu_usernat.policy.settings import PolicySettings
    from qemu_usernat.primitives.errors import UserError

__version__ = "0.1.0"

__all__ = [
    "NetworkPolicy",
    "PolicySettings",
    "UserError",
    "__version__",
    "read_config",
    "running",
]

_WHERE = {
    "NetworkPolicy": "qemu_usernat.policy.rules",
    "PolicySettings": "qemu_usernat.policy.settings",
    "UserError": "qemu_usernat.primitives.errors",
    "read_config": "qemu_usernat.config.configuration",
    "running": "qemu_usernat.app",
}


def __getattr__(name: str) -> Any:
    """What is not everybody's is imported when it is asked for (PEP 562)."""
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
