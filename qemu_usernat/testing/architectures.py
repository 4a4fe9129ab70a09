"""What of a bare machine depends on its architecture, and which QEMU arguments an accelerator is.

Owns facts about QEMU's system emulators; starts none.
"""

import platform
from collections.abc import Sequence

import attrs

from qemu_usernat.primitives.errors import UserError

ACCELERATORS = ("kvm", "tcg")


@attrs.frozen
class Architecture:
    """A machine that boots a kernel with a serial console."""

    machine: str
    console: str
    """The kernel's name for the first serial port."""
    processor: str | None = None
    """Under TCG; QEMU's default where None."""
    serial_ports: int = 1


ARCHITECTURES = {
    # Not `-cpu max`: it offers the guest `rep movsb` and AVX, which make TCG four times slower.
    # With rdrand the guest's random numbers are ready at once.
    "x86_64": Architecture("pc", "ttyS0", "Westmere,+rdrand", serial_ports=2),
    "i386": Architecture("pc", "ttyS0", serial_ports=2),
    # The default is a processor of 32 bits.
    "aarch64": Architecture("virt", "ttyAMA0", "cortex-a57"),
    "arm": Architecture("virt", "ttyAMA0"),
    "riscv64": Architecture("virt", "ttyS0"),
    "ppc64": Architecture("pseries", "hvc0"),
    "s390x": Architecture("s390-ccw-virtio", "ttysclp0"),
}


def architecture_named(name: str) -> Architecture:
    """The facts of that architecture; UserError where we have none."""
    if name not in ARCHITECTURES:
        raise UserError(
            f"architecture: {name!r}; allowed: {', '.join(ARCHITECTURES)}; "
            "for others give the whole `command`"
        )
    return ARCHITECTURES[name]


def accelerator_arguments(accelerator: str, architecture: str) -> Sequence[str]:
    """QEMU's arguments for "kvm" or "tcg"."""
    if accelerator not in ACCELERATORS:
        raise UserError(f"accelerator: {accelerator!r}; allowed: {', '.join(ACCELERATORS)}")
    if accelerator == "kvm":
        return ("-accel", "kvm", "-cpu", "host")
    processor = architecture_named(architecture).processor
    return ("-accel", "tcg,thread=multi", *(("-cpu", processor) if processor else ()))


def is_of_host(architecture: str) -> bool:
    """Whether the host's own processor could run it."""
    return platform.machine() == architecture
