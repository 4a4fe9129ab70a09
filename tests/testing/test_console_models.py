"""The console against models: a nasty terminal before a real shell, and echoes of every kind."""

import os
import re
import subprocess
from collections.abc import Iterator
from itertools import cycle

import attrs
import pytest
import trio
import trio.testing
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qemu_usernat.testing import console as console_module
from qemu_usernat.testing.console import VmConsole
from qemu_usernat.testing.echo import EchoFilter

WRAPS = [b"\r\n", b" \r", b"\x1b[K\r\n", b"\r\r\n", b"\x1b[A\x1b[80C"]
MOVES = [b"\r\x1b[C", b"\x1b[A\x1b[5C\x1b[K", b"\x08\x08"]
KERNEL = b"[   12.345678] eth0: link up\r\n"
NOISE = [KERNEL, b"[    0.000001][    T1] printk: [x] y\r\n", b"\x1e", b"\x1b[31m# \x1b[0m", b"0 "]
UTF_8 = ["…".encode(), b"\xa0\xff", "á".encode(), b"\xe1\xe2\xe3\xe4"]  # the last looks like base64


def examples(usual: int) -> settings:
    """So many, and the more the profile asks for: `deep` 50 times as many."""
    return settings(max_examples=usual * settings().max_examples // 100)


def echoed(text: bytes, width: int, wrap: bytes, noise: dict[int, bytes]) -> bytes:
    """A line as a terminal of that width gives it back, with `noise` before the n-th character."""
    shown = bytearray()
    for number, character in enumerate(text):
        shown += noise.get(number, b"")
        if number and number % width == 0:
            shown += wrap
        shown.append(character)
    return bytes(shown) + noise.get(len(text), b"") + b"\r\n"


@attrs.define(slots=False)
class NastyTerminal(trio.abc.Stream):
    """A model of a terminal before a real shell: it echoes or not, wraps, splits and is noisy."""

    typing: trio.lowlevel.FdStream
    listening: trio.lowlevel.FdStream
    echo: bool
    late: bool
    width: int
    wrap: bytes
    noise: Iterator[tuple[int, bytes]]
    sizes: Iterator[int]
    pending: bytearray = attrs.field(factory=bytearray)
    said: list[bytes] = attrs.field(factory=list)
    held: bytearray = attrs.field(factory=bytearray)
    gap: int = 0
    next_noise: bytes = b""

    def add(self, data: bytes) -> None:
        """What goes out, with noise in its middle wherever it is time for some."""
        for piece in re.findall(rb"\x1b\[\d*[A-Z]|.", data, re.DOTALL):
            if self.gap == 0:
                self.said.append(self.next_noise)
                self.pending += self.next_noise
                self.gap, self.next_noise = next(self.noise, (1 << 62, b""))
            self.gap -= 1
            self.pending += piece

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self.echo:
            lines = bytes(data).splitlines()
            shown = b"".join(echoed(line, self.width, self.wrap, {}) for line in lines)
            if self.late:
                self.held += shown
            else:
                self.add(shown)
        await self.typing.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.typing.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if not self.pending:
            if self.held:
                self.add(bytes(self.held))
                self.held.clear()
            else:
                self.add(bytes(await self.listening.receive_some(max_bytes)))
        size = next(self.sizes)
        piece = bytes(self.pending[:size])
        del self.pending[:size]
        return piece

    async def aclose(self) -> None:
        await self.typing.aclose()
        await self.listening.aclose()


def visible(data: bytes) -> bytes:
    return b"".join(data.split())


noises = st.lists(st.tuples(st.integers(0, 400), st.sampled_from(NOISE)), max_size=30)


@examples(60)
@given(
    echo=st.booleans(),
    late=st.booleans(),
    width=st.integers(1, 200),
    wrap=st.sampled_from(WRAPS),
    noise=noises,
    spoilt=st.one_of(st.none(), st.tuples(st.integers(0, 900), st.sampled_from(UTF_8))),
    sizes=st.lists(st.integers(1, 400), min_size=1),
    outputs=st.lists(st.binary(max_size=700), min_size=1, max_size=3),
    status=st.integers(0, 255),
)
async def test_a_nasty_terminal_changes_no_answer(
    echo: bool,
    late: bool,
    width: int,
    wrap: bytes,
    noise: list[tuple[int, bytes]],
    spoilt: tuple[int, bytes] | None,
    sizes: list[int],
    outputs: list[bytes],
    status: int,
) -> None:
    """Whatever a terminal and others do, the answers are the command's own bytes."""
    everything = [*noise, spoilt] if spoilt else noise
    async with nasty(echo, late, width, wrap, iter(everything), cycle(sizes)) as stream:
        console = VmConsole(stream)
        with trio.fail_after(30), pytest.MonkeyPatch.context() as patch:
            patch.setattr(console_module, "SILENCE", 0.2)
            await console.synchronise()
            for output in outputs:
                # busybox's shell ignores what follows a zero byte in a script: bytes go by number
                octal = "".join(f"\\{byte:03o}" for byte in output)
                assert await console.exec(f"printf '{octal}'; exit {status}") == (status, output)


@examples(60)
@given(
    echo=st.booleans(),
    width=st.integers(1, 200),
    wrap=st.sampled_from(WRAPS),
    gaps=st.lists(st.integers(0, 300), max_size=30),
    sizes=st.lists(st.integers(1, 400), min_size=1),
    output=st.binary(max_size=700),
)
async def test_what_others_say_around_an_answer_is_kept(
    echo: bool, width: int, wrap: bytes, gaps: list[int], sizes: list[int], output: bytes
) -> None:
    """The kernel's messages before, within and after an answer stay to be read: these alone."""
    noise = ((gap, b"[%5d.000000] message\r\n" % number) for number, gap in enumerate(gaps))
    async with nasty(echo, False, width, wrap, iter(()), cycle(sizes)) as stream:
        console = VmConsole(stream)
        with trio.fail_after(30):
            await console.synchronise()
            await console.wait_for(r"(?s).*")
            stream.noise, stream.gap, stream.said = noise, 0, []
            octal = "".join(f"\\{byte:03o}" for byte in output)
            assert await console.exec(f"printf '{octal}'") == (0, output)
            said = visible(b"".join(stream.said))
            unread = visible(console.unread + bytes(stream.pending))
            assert unread == said


@st.composite
def conversations(draw: st.DrawFn) -> tuple[list[bytes], bytes, bytes]:
    """Lines that are sent, what is heard, and that without echo.

    What the guest says begins like what was sent, but never is a line of it. What was echoed while
    nobody read may come again, behind a prompt.
    """
    sends: list[bytes] = []
    heard, wanted = bytearray(), bytearray()

    def echo(text: bytes) -> None:
        width, wrap = draw(st.integers(1, 12)), draw(st.sampled_from(WRAPS))
        places = draw(st.lists(st.integers(0, len(text)), max_size=2, unique=True))
        within = dict.fromkeys(places, KERNEL)
        place = draw(st.integers(1, len(text)))
        first = draw(st.integers(0, place))
        if b"\n" not in wrap and draw(st.booleans()):  # a line editor shows a part once more
            move = draw(st.sampled_from(MOVES))
            within[place] = within.get(place, b"") + move + text[first:place]
        if draw(st.integers(0, 5)):
            heard.extend(echoed(text, width, wrap, within))
            wanted.extend(KERNEL * len(places))
        else:  # it shows the end only
            heard.extend(b"\r<" + text[first:] + b"\r\n")
            wanted.extend(b"\r")

    def say(*choices: bytes) -> None:
        words = draw(st.sampled_from(choices))
        heard.extend(words)
        wanted.extend(words)

    for number in range(draw(st.integers(1, 4))):
        text = b"%d" % number + draw(st.text("ab c[;<é", max_size=30)).encode()
        sends.append(text)
        words = (b"", b"$ ", b"one\r\n", b"X" + text[:4] + b"~\r\n", KERNEL)
        say(*words)
        is_read = heard.replace(KERNEL, b"").endswith(b"$ ")
        if draw(st.booleans()):
            echo(text)
            say(*words)
            if not is_read and draw(st.booleans()):
                say(b"$ ", b"~# \x1b[6n", b"\x1b[?2004hroot@guest:~#")
                echo(text)
        say(*words)
    return sends, bytes(heard), bytes(wanted)


@examples(500)
@given(conversation=conversations(), sizes=st.lists(st.integers(1, 40), min_size=1))
@example(conversation=([b"y"], b"only\r\nreally\r\n", b"only\r\nreally\r\n"), sizes=[3])
@example(conversation=([b"root"], b"login: ro\r\not\r\n", b"login: "), sizes=[1])
@example(conversation=([b"root"], b"root@guest:~# ", b"root@guest:~# "), sizes=[1])
@example(conversation=([b"3  "], b"3\x1b[K\r\n \x1b[K\r\n \r\n", b""), sizes=[1])
@example(conversation=([b"3  "], b"3\r\n\x1b[K$ ", b"\x1b[K$ "), sizes=[1])
@example(conversation=([b"3  "], b"3\r\n\x1b[K", b"\x1b[K"), sizes=[1])
@example(conversation=([b"ls"], b"~# \x1b[6nls\r\n", b"~# \x1b[6n"), sizes=[1])
@example(
    conversation=([b"ls", b"id"], b"id\r\n# ls\r\n.\r\n# id\r\n0\r\n", b"# .\r\n# 0\r\n"), sizes=[1]
)
@example(conversation=([b"0 "], b"0\r\n \r\x1b[C0 \r\n", b""), sizes=[1])
@example(conversation=([b"ls"], b"~# ls \r\x1b[A\x1b[Ks\r\n", b"~# "), sizes=[1])
@example(conversation=([b"ls"], b"~# l\x1b[H\x1b[J~# ls\r\n", b"~# "), sizes=[1])
@example(conversation=([b"ls"], b"~# l\x1b]0;~\x07s\r\n", b"~# "), sizes=[1])
@example(conversation=([b"a<<b"], b"a \r< \r< \rb\r\n", b""), sizes=[1])
@example(conversation=([b"aX", b"aZb"], b"aZ\rX\r\n", b"aZ\rX\r\n"), sizes=[1])
def test_an_echo_is_cut_out_and_nothing_else(
    conversation: tuple[list[bytes], bytes, bytes], sizes: list[int]
) -> None:
    """On or off, wrapped, late, with kernel messages within: what remains is what was said."""
    sends, heard, wanted = conversation
    echo = EchoFilter()
    for text in sends:
        echo.sent(text)
    passed, split = bytearray(), cycle(sizes)
    while heard:
        size = next(split)
        passed += echo.feed(heard[:size])
        heard = heard[size:]
    passed += echo.give_up()
    assert visible(bytes(passed)) == visible(wanted)


def test_each_copy_of_what_nobody_else_says_is_an_echo() -> None:
    """A shell without a prompt may show a line of `exec` at any time, and once more."""
    echo = EchoFilter()
    echo.sent(b"dHJ1ZQ", unmistakable=True)
    assert echo.feed(b"one\r\ndHJ1ZQ\r\n\x1b[KdHJ1ZQ\r\ntwo\r\n") == b"one\r\n\x1b[Ktwo\r\n"


@given(data=st.binary(max_size=300), sizes=st.lists(st.integers(1, 40), min_size=1))
def test_without_an_echo_not_a_byte_is_touched(data: bytes, sizes: list[int]) -> None:
    """What is no echo of "never said" goes through, whatever it is."""
    echo, passed, split = EchoFilter(), bytearray(), cycle(sizes)
    echo.sent(b"[never said]")
    rest = data
    while rest:
        size = next(split)
        passed += echo.feed(rest[:size])
        rest = rest[size:]
    assert bytes(passed) + echo.give_up() == data


@pytest.mark.parametrize("more", [b" ", b"\r\n ", b"x\r", b"[    0.000001] x", b"\x1b]x"])
def test_what_goes_on_for_ever_is_no_echo(more: bytes) -> None:
    """A guest that never says for certain that this is not the echo is heard all the same."""
    echo = EchoFilter()
    echo.sent(b"xyz")
    passed = b"".join(echo.feed(more) for _ in range(0, 40_000, len(more)))
    assert len(passed) > 30_000


class nasty:  # noqa: N801 - used as a function
    """A nasty terminal before a shell on pipes, for the length of an ``async with``."""

    def __init__(
        self,
        echo: bool,
        late: bool,
        width: int,
        wrap: bytes,
        noise: Iterator[tuple[int, bytes]],
        sizes: Iterator[int],
    ) -> None:
        (self.shell_input, typing), (listening, self.shell_output) = os.pipe(), os.pipe()
        ends = trio.lowlevel.FdStream(typing), trio.lowlevel.FdStream(listening)
        self.stream = NastyTerminal(*ends, echo, late, width, wrap, noise, sizes)

    async def __aenter__(self) -> NastyTerminal:
        output = self.shell_output
        self.process = subprocess.Popen(  # noqa: ASYNC220 - it takes no time that matters
            ["dash", "-i"], stdin=self.shell_input, stdout=output, stderr=output
        )
        os.close(self.shell_input)
        os.close(output)
        return self.stream

    async def __aexit__(self, *_: object) -> None:
        await self.stream.aclose()
        self.process.kill()
        self.process.wait()
