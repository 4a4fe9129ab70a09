"""What a terminal gives back of what was typed, told apart from what the guest says.

Owns one question: which bytes of a stream are the echo of which line that was sent. A terminal that
echoes gives back the characters typed, in order, with nothing between them but what wraps a line
(carriage returns, line feeds, spaces, escape sequences) and, on a console, the kernel's messages;
then a line feed. Whatever looks different is not an echo, and stays where it is, to the byte.

- An echo may come late, behind other words, or never. What may still become one is held back.
- It begins where a word begins: "y" is not the end of "only".
- A kernel's message in its middle stays: the echo is cut out around it.
- Each line is given back once. So the first copy of a line counts as the echo, also where
  the terminal did not echo and a program said the very same line: nobody could tell these apart.
"""

import re
from collections.abc import Iterator

import attrs

WORD = rb"[A-Za-z0-9_]"
ESCAPE = rb"\x1b\[[0-?]*[ -/]*[@-~]"  # ECMA-48, a control sequence
KERNEL = rb"\[ *\d+\.\d{6}\](?:\[ *[TC]\d+\])? [^\r\n]*\r*\n"  # printk's time stamp, and its line
BETWEEN = re.compile(rb"(?:[ \t\r\n\x08]|" + ESCAPE + rb"|" + KERNEL + rb")+")
BEHIND = re.compile(rb"(?:[ \t]|\r(?![\r\n])|" + ESCAPE + rb"|" + KERNEL + rb")*\r*\n")
UNFINISHED = re.compile(
    rb"(?:[ \t\r\n\x08]|" + ESCAPE + rb"|" + KERNEL + rb")*"
    rb"(?:\x1b(?:\[[0-?]*[ -/]*)?|\[ *\d*(?:\.\d*(?:\][^\n]*)?)?)?"
)
KERNEL_LINE = re.compile(KERNEL)
KEPT = 64  # lines whose echo is waited for; the oldest are given up


@attrs.define
class _Line:
    """A line that was sent, and how far its echo is recognised in what is held back."""

    letters: bytes
    whole: bool
    """It was sent with its line end, so its echo has one too."""
    since: int
    """Where the stream stood when it was sent."""
    at: int = 0
    matched: int = 0

    def judge(self, held: bytearray) -> bool | None:
        """Whether `held` begins with the echo, up to `at`; None if only more can tell."""
        while self.matched < len(self.letters):
            wanted = self.letters[self.matched]
            if self.at == len(held):
                return None
            if held[self.at] == wanted and wanted != 0x5B:
                self.at, self.matched = self.at + 1, self.matched + 1
            elif found := BETWEEN.match(held, self.at):
                if found.end() == len(held):
                    return None  # a space may yet become the one before a carriage return
                self.at = found.end()
            elif held[self.at] == wanted:
                if UNFINISHED.fullmatch(held, self.at):
                    return None  # a bracket, or the kernel's time stamp
                self.at, self.matched = self.at + 1, self.matched + 1
            else:
                return None if UNFINISHED.fullmatch(held, self.at) else False
        if not self.whole:
            return True
        if found := BEHIND.match(held, self.at):
            self.at = found.end()
            return True
        return None if UNFINISHED.fullmatch(held, self.at) else False


class EchoFilter:
    """A stream goes in, and comes out without the echo of the lines it was told of."""

    def __init__(self) -> None:
        self._lines: list[_Line] = []
        self._held = bytearray()
        self._passed = 0  # bytes before those held
        self._last = b"\n"  # the last of them
        self.removed = b""
        """The last echo that was cut out: for messages."""

    @property
    def waiting(self) -> bool:
        """Whether any echo may still come."""
        return bool(self._lines)

    def sent(self, text: bytes, whole: bool = True) -> None:
        """`text` is being typed; `whole` if a line end follows it."""
        letters = b"".join(_shown(byte) for byte in text if byte not in b" \t\r\n\x08")
        if letters:
            self._lines = [*self._lines, _Line(letters, whole, self._passed + len(self._held))]
            del self._lines[:-KEPT]

    def feed(self, data: bytes) -> bytes:
        """What of the stream is surely no echo, up to and including `data`."""
        if not self._lines:
            return data
        self._held += data
        return b"".join(self._sort_out())

    def give_up(self) -> bytes:
        """No echo comes any more: what is still held back was none."""
        rest = bytes(self._held)
        self._lines.clear()
        self._release(len(rest))
        return rest

    def _sort_out(self) -> Iterator[bytes]:
        while self._lines and self._held:
            if start := self._next_start():
                yield self._release(start)
                continue
            verdicts = [self._may_begin(line) and line.judge(self._held) for line in self._lines]
            first = next((n for n, verdict in enumerate(verdicts) if verdict is not False), None)
            if first is None:
                yield self._release(1)
            elif verdicts[first]:
                end = self._lines[first].at
                del self._lines[: first + 1]
                self.removed = self._release(end)
                yield b"".join(KERNEL_LINE.findall(self.removed))
            else:
                return
        yield self._release(0 if self._lines else len(self._held))

    def _next_start(self) -> int:
        """How many bytes to go to the next that an echo may begin with."""
        if any(line.at for line in self._lines):
            return 0
        firsts = rb"[" + re.escape(bytes({line.letters[0] for line in self._lines})) + rb"]"
        found = re.search(rb"(?<!" + WORD + rb")" + firsts, self._held)
        starts = [line.since - self._passed for line in self._lines]
        return min([found.start() if found else len(self._held), *(n for n in starts if n >= 0)])

    def _may_begin(self, line: _Line) -> bool:
        return line.since == self._passed or (
            line.since < self._passed and not re.match(WORD, self._last)
        )

    def _release(self, count: int) -> bytes:
        released = bytes(self._held[:count])
        if released:
            del self._held[:count]
            self._passed += count
            self._last = released[-1:]
            for line in self._lines:
                line.at = line.matched = 0
        return released


def _shown(byte: int) -> bytes:
    """How a terminal shows a character: control characters as ^C (ECHOCTL)."""
    return b"^" + bytes((byte ^ 0x40,)) if byte < 0x20 or byte == 0x7F else bytes((byte,))
