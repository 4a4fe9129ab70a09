"""DHCP messages to and from bytes (RFC 2131, 2; RFC 2132, 3; RFC 3396).

Form only: what an option means, and which a message must have, is the server's affair. An
option is a code and its bytes; one that was split is whole again here, in all the places that RFC
3396 lets it hide. BOOTP messages (RFC 951), which have no options, are read as well: a server
must know what it declines.

This reader is our own because impacket's takes 0.3 ms a message and loses what follows a pad.
"""

from struct import Struct

from attrs import define, evolve, field, frozen

from qemu_usernat.primitives.addresses import Address, MacAddress
from qemu_usernat.primitives.errors import Malformed

MESSAGE_MINIMUM = 300  # bytes: BOOTP's size, and some clients drop less (RFC 1542, 2.1)

_FIXED = Struct(">BBBBIHH4s4s4s4s16s64s128s")
_MAGIC_COOKIE = b"\x63\x82\x53\x63"  # RFC 2131, 3
_HARDWARE_ETHERNET = 1
_BROADCAST_FLAG = 0x8000  # RFC 2131, figure 2

_PAD = 0  # RFC 2132, 3.1
_END = 255  # RFC 2132, 3.2
_OVERLOAD = 52  # RFC 2132, 9.3: the fields `file` (1) and `sname` (2) hold options too
_OPTION_MAXIMUM = 255  # bytes of a value; more are sent in pieces (RFC 3396, 6)
FILE_ROOM = 127  # bytes of the fields `file` and `sname` (RFC 2131, 2), less one for their end
_NAME_ROOM = 63


@frozen
class DhcpMessage:
    """A DHCP or BOOTP message over Ethernet (RFC 2131, figure 1).

    `operation` is 1 from a client, 2 from a server; `seconds` since the client began. The
    addresses are `ciaddr`, `yiaddr`, `siaddr` and `giaddr`. `options` maps a code to its bytes,
    joined if they came in pieces, without pads and the end.
    """

    operation: int
    transaction_id: int
    seconds: int
    broadcast: bool
    client_address: Address
    your_address: Address
    server_address: Address
    relay_address: Address
    client_mac: MacAddress
    options: dict[int, bytes]
    boot_file: bytes = b""


def parse_dhcp(payload: bytes) -> DhcpMessage:
    """The message in a UDP payload; raises only `Malformed`.

    A message whose options lack their end is taken; one with an option that is cut off is not.
    """
    if len(payload) < _FIXED.size:
        raise Malformed("dhcp.too_short")
    (operation, hardware, hardware_length, _, transaction_id, seconds, flags, client_address,
     your_address, server_address, relay_address, client_hardware, server_name,
     boot_file) = _FIXED.unpack_from(payload)  # fmt: skip
    if hardware != _HARDWARE_ETHERNET or hardware_length != 6:
        raise Malformed("dhcp.not_ethernet")
    options: dict[int, bytes] = {}
    if payload[_FIXED.size : _FIXED.size + 4] == _MAGIC_COOKIE:
        _read_options(payload[_FIXED.size + 4 :], options)
        overload = options.pop(_OVERLOAD, b"")[-1:]
        # The order in which pieces are joined: RFC 3396, 5.
        if overload in (b"\x01", b"\x03"):
            _read_options(boot_file, options)
            boot_file = b""
        if overload in (b"\x02", b"\x03"):
            _read_options(server_name, options)
    return DhcpMessage(
        operation=operation,
        transaction_id=transaction_id,
        seconds=seconds,
        broadcast=bool(flags & _BROADCAST_FLAG),
        client_address=client_address,
        your_address=your_address,
        server_address=server_address,
        relay_address=relay_address,
        client_mac=client_hardware[:6],
        options=options,
        boot_file=boot_file.split(b"\0", 1)[0],
    )


def build_dhcp(message: DhcpMessage, limit: int | None = None) -> bytes:
    """The UDP payload for `message`: options in the order of the dict, at least 300 bytes.

    With a `limit`, in bytes, options that find no room go into the fields `file` and `sname`, and
    those that find none there are left out. ValueError for a boot file name of more than 127 bytes.
    """
    if len(message.boot_file) > FILE_ROOM:
        raise ValueError("the name of a boot file is at most 127 bytes")
    layout = _lay_out(message, limit)
    overload = (1 if layout.file else 0) | (2 if layout.server_name else 0)
    parts = [
        _FIXED.pack(
            message.operation,
            _HARDWARE_ETHERNET,
            6,
            0,
            message.transaction_id,
            message.seconds,
            _BROADCAST_FLAG if message.broadcast else 0,
            message.client_address,
            message.your_address,
            message.server_address,
            message.relay_address,
            message.client_mac,
            _ended(layout.server_name),
            _ended(layout.file) or message.boot_file,
        ),
        _MAGIC_COOKIE,
        bytes((_OVERLOAD, 1, overload)) if overload else b"",
        *layout.options,
        bytes((_END,)),
    ]
    return b"".join(parts).ljust(MESSAGE_MINIMUM, b"\0")


def fitting(message: DhcpMessage, limit: int) -> DhcpMessage:
    """`message` without the options that `build_dhcp` would leave out."""
    left_out = _lay_out(message, limit).left_out
    kept = {code: value for code, value in message.options.items() if code not in left_out}
    return evolve(message, options=kept)


@define
class _Layout:
    """Where options go; in pieces, each with its code and length in front."""

    options: list[bytes] = field(factory=list)
    file: list[bytes] = field(factory=list)
    server_name: list[bytes] = field(factory=list)
    left_out: set[int] = field(factory=set)


def _lay_out(message: DhcpMessage, limit: int | None) -> _Layout:
    """Each option into the first field that has room for all of it (RFC 3396, 5 and 6)."""
    written = {code: _written(code, value) for code, value in message.options.items()}
    room = None if limit is None else limit - _FIXED.size - len(_MAGIC_COOKIE) - 1
    if room is None or sum(map(len, written.values())) <= room:
        return _Layout(list(written.values()))
    layout = _Layout()
    fields = [(layout.options, room - 3), (layout.file, 0), (layout.server_name, _NAME_ROOM)]
    if not message.boot_file:
        fields[1] = layout.file, FILE_ROOM
    for code, octets in written.items():
        for pieces, size in fields:
            if sum(map(len, pieces)) + len(octets) <= size:
                pieces.append(octets)
                break
        else:
            layout.left_out.add(code)
    return layout


def _written(code: int, value: bytes) -> bytes:
    # A value of no bytes is an option nevertheless (RFC 4039, 4).
    starts = range(0, len(value) or 1, _OPTION_MAXIMUM)
    pieces = [value[start : start + _OPTION_MAXIMUM] for start in starts]
    return b"".join(bytes((code, len(piece))) + piece for piece in pieces)


def _ended(pieces: list[bytes]) -> bytes:
    return b"".join([*pieces, bytes((_END,))]) if pieces else b""


def _read_options(field: bytes, options: dict[int, bytes]) -> None:
    """Add the options of one field to `options`, joining pieces (RFC 3396, 7)."""
    at, end = 0, len(field)
    pieces: dict[int, list[bytes]] = {}
    while at < end and field[at] != _END:
        if field[at] == _PAD:
            at += 1
            continue
        if at + 2 > end or at + 2 + field[at + 1] > end:
            raise Malformed("dhcp.bad_option")
        value_end = at + 2 + field[at + 1]
        pieces.setdefault(field[at], []).append(field[at + 2 : value_end])
        at = value_end
    for code, values in pieces.items():
        options[code] = options.get(code, b"") + b"".join(values)
