"""What the host's kernel refuses to do, in the words of ICMP (RFC 792, RFC 1812, 5.2.7.1)."""

import errno

from qemu_usernat.wire.icmp import IcmpError, unreachable

_CODES = {  # errno of connect(2) or sendto(2) to the code of ICMP destination unreachable
    errno.ENETUNREACH: 0,
    errno.ENETDOWN: 0,
    errno.EHOSTUNREACH: 1,
    errno.EHOSTDOWN: 1,
    errno.ETIMEDOUT: 1,
    errno.EADDRNOTAVAIL: 1,
    errno.EACCES: 13,
    errno.EPERM: 13,
}


def refusal(error: int) -> IcmpError | None:
    """The ICMP error that says this errno, as a router without a way would; None where none
    does."""
    code = _CODES.get(error)
    return None if code is None else unreachable(code)
