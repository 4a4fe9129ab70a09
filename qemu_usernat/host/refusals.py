"""What the host's kernel refuses to do, in the words of ICMP (RFC 792, RFC 1812, 5.2.7.1)."""

import errno

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


def refusal_code(error: int) -> int | None:
    """The code of ICMP destination unreachable that says this errno; None where none does."""
    return _CODES.get(error)
