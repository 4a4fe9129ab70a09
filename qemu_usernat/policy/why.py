"""Why a verdict is what it is: the closed list, of the judge's reasons and of those around it.

What is asked before the judge is (addresses that no policy admits, forged frames, the questions of
DNS) and after it (the later requests of an HTTP connection) has its reasons here, too, so that
whoever reads an audit needs one list.
"""

from enum import Enum


class Why(Enum):
    """The reason of a verdict."""

    # the judge's
    RULE = "rule"
    """The rule that is named matches."""
    PIN = "pin"
    """The rule that is named matches: the address is of its name, and what is spoken says none."""
    DEFAULT = "default"
    """No rule matches."""
    FLOOR = "floor"
    """No rule names the group of the address; neither "any" nor a default reaches it."""
    HELD = "held"
    """What the guest says first will decide."""
    NOT_PINNED = "not_pinned"
    """A rule allows the name that the guest says, but the guest was not given this address for
    it."""
    OTHER_NAME = "other_name"
    """The address is of an allowed name, but the guest speaks to another one there."""
    NO_NAME = "no_name"
    """The address is of an allowed name, but the guest does not say whom it speaks to."""
    UNREADABLE = "unreadable"
    """What the guest says first cannot be read: it is no allowed name, and may be a denied one."""
    NOT_TLS = "not_tls"
    """The address is of an allowed name, but on port 443 the guest does not speak TLS."""
    NOT_HTTP = "not_http"
    """The address is of an allowed name, but on port 80 the guest does not speak HTTP/1."""
    QUIC = "quic"
    """UDP to port 443, where a name decides: the client falls back to TCP."""
    PROTOCOL = "protocol"
    """The address is of an allowed name, but the rule does not say this protocol."""
    INWARD = "inward"
    """The name is allowed, but the address is not public: no rule allows the address itself."""
    MARTIAN = "martian"
    """An address that no policy admits: of loopback or of no host, in any form."""
    NAME_SERVICE = "name_service"
    """A way to look up names that is not the gateway's: ports 853, 5353, 5355 and 137."""

    # before the judge
    SPOOFED = "spoofed"
    """A frame from an address that is not this link's."""
    ISOLATED = "isolated"
    """Another guest's address, where each guest is to see the gateway alone."""
    UNCARRIED = "uncarried"
    """A protocol that nothing carries: only TCP, UDP and ICMP are."""
    QUESTION = "question"
    """A question that no guest may ask: a zone transfer, an update, another class."""

    # after the judge, on HTTP/1
    CONNECT = "connect"
    """A request for a tunnel."""
    UPGRADE = "upgrade"
    """A request to go on in another protocol."""
    FRAMING = "framing"
    """A request whose end two readers may see in different places."""
