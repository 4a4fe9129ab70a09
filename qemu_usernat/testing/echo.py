"""What a terminal gives back of what was typed, told apart from what the guest says.

Owns one question: which bytes of a stream are the echo of which line that was sent; `EchoLine`
knows what an echo of one line looks like. Whatever looks different is not an echo, and stays where
it is, to the byte.

- An echo may come late, behind other words, or never. What may still become one is held back.
- It begins with its first letter, and where a word begins: "y" is not the end of "only".
- A kernel's message in its middle stays: the echo is cut out around it.
- Each line is given back once. So the first copy of a line counts as the echo, also where
  the terminal did not echo and a program said the very same line: nobody could tell these apart.
- A line typed while nobody reads is given back twice: by the terminal at once, without a prompt
  before it, and by the line editor of the shell that comes to read it, behind its prompt. A second
  copy without a prompt is a program's own, as `cat` makes it. So what the terminal gives back of
  one line may come before what the editor gives back of the line before.
"""

import re
from collections.abc import Iterator

from qemu_usernat.testing.echo_line import ESCAPE, KERNEL, PROMPT_SIZE, EchoLine, line_before

WORD = rb"[A-Za-z0-9_]"
IN_WORD = re.compile(WORD)
AFTER_ESCAPE = re.compile(ESCAPE + rb"\Z")
BEGIN = rb"(?:(?<!" + WORD + rb")|" + ESCAPE + rb")(?=%b)|(?<=\r)(?=<)"
KERNEL_LINE = re.compile(KERNEL)
SHELL_PROMPT = rb"[#$%>] ?"
ESCAPE_SIZE = 32  # bytes; few are longer
KEPT = 64  # lines whose echo is waited for; the oldest are given up


class EchoFilter:
    """A stream goes in, and comes out without the echo of the lines it was told of."""

    def __init__(self) -> None:
        self._lines: list[EchoLine] = []
        self._beginnings = re.compile(b"")  # of the lines' echoes
        self._prompts: set[bytes] = set()
        self._said = bytearray()  # the last that has passed, and what is held back
        self._start = 0  # of what is held back
        self._passed = 0  # bytes in all
        self.removed = b""
        """The last echo that was cut out: for messages."""

    @property
    def held(self) -> bytes:
        """What may still become an echo."""
        return bytes(self._said[self._start :])

    def sent(self, text: bytes, whole: bool = True, unmistakable: bool = False) -> None:
        """`text` is being typed; `whole` if a line end follows it.

        Nobody else says what is `unmistakable`: each copy of it is an echo.
        """
        line = EchoLine(text, whole, self._passed + len(self._said) - self._start)
        line.is_unmistakable = unmistakable
        if line.letters:
            self._wait_for([*self._lines, line][-KEPT:])

    def prompted(self) -> None:
        """What the guest has said last is a prompt."""
        self._prompts.add(self._line_so_far())

    def feed(self, data: bytes) -> bytes:
        """What of the stream is surely no echo, up to and including `data`."""
        self._said += data
        return self._sort_out(last=False)

    def let_go(self) -> bytes:
        """What of that which is held back is no echo, if nothing follows it."""
        return self._sort_out(last=True)

    def give_up(self) -> bytes:
        """The same, and no echo comes any more."""
        rest = self.let_go()
        self._wait_for([])
        return rest

    def _wait_for(self, lines: list[EchoLine]) -> None:
        self._lines = lines
        self._beginnings = re.compile(BEGIN % b"|".join({line.first for line in lines}))

    def _sort_out(self, last: bool) -> bytes:
        sure = b"".join(self._pieces(last))
        if self._start > PROMPT_SIZE:
            del self._said[: self._start - PROMPT_SIZE]
            self._start = PROMPT_SIZE
        return sure

    def _pieces(self, last: bool) -> Iterator[bytes]:
        while self._start < len(self._said) and self._lines:
            if count := self._next_start():
                yield self._release(count)
                continue
            for line in self._candidates():
                verdict = line.judge(self._said, self._start, last)
                if verdict is None:
                    count = line.overlong(len(self._said) - self._start)
                    if not count:
                        return
                    yield self._release(count)
                    break
                if verdict:
                    yield self._cut_out(line)
                    break
            else:
                yield self._release(1)
        yield self._release(len(self._said) - self._start)

    def _next_start(self) -> int:
        """How many bytes to go to the next that an echo may begin with."""
        if any(line.at for line in self._lines):
            return 0
        starts = [line.since - self._passed for line in self._lines]
        escape = self._said.rfind(b"\x1b", max(0, self._start - ESCAPE_SIZE), self._start)
        look_from = self._start if escape < 0 else escape
        for found in self._beginnings.finditer(self._said, look_from):
            if found.end() >= self._start:
                starts.append(found.end() - self._start)
                break
        return min([*(n for n in starts if n >= 0), len(self._said) - self._start])

    def _candidates(self) -> Iterator[EchoLine]:
        """The lines whose echo may begin here."""
        in_word = False
        if self._start and IN_WORD.match(self._said, self._start - 1):
            before = self._said[max(0, self._start - ESCAPE_SIZE) : self._start]
            in_word = not AFTER_ESCAPE.search(before)
        again = any(line.is_echoed for line in self._lines) and self._is_behind_prompt()
        for line in self._lines:
            if line.since < self._passed:
                may_begin = again if line.is_echoed else not in_word
            else:
                may_begin = line.since == self._passed
            if may_begin:
                yield line

    def _cut_out(self, line: EchoLine) -> bytes:
        if self._is_behind_prompt():  # whoever reads has come to this line
            self._wait_for(self._lines[self._lines.index(line) + 1 :])
        elif line.whole:
            line.is_echoed = not line.is_unmistakable
        else:
            self._wait_for([other for other in self._lines if other is not line])
        self.removed = self._release(line.at)
        return b"".join(KERNEL_LINE.findall(self.removed))

    def _is_behind_prompt(self) -> bool:
        said = self._line_so_far()
        return said in self._prompts or bool(re.search(SHELL_PROMPT + rb"\Z", said))

    def _line_so_far(self) -> bytes:
        return line_before(self._said, self._start)

    def _release(self, count: int) -> bytes:
        released = bytes(self._said[self._start : self._start + count])
        self._start += count
        self._passed += count
        for line in self._lines:
            line.at = 0
        return released
