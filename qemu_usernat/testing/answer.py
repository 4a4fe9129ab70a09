"""How a shell's answer is told apart from whatever else a console says meanwhile.

Owns one answer: ASCII with the eighth bit set, between two copies of a random word. What is typed,
what is echoed and what kernels say has that bit clear, so both can be picked out of each other,
byte for byte, wherever they got into each other's middle. Only UTF-8 spoils an answer, and then its
reader, who has a checksum, asks again.
"""

import re
import secrets

ASCII = bytes(range(0x80))
EIGHTH_BIT = bytes(range(0x80, 0x100))
AS_ANSWER = bytes((*range(0x80, 0x100), *range(0x80, 0x100)))
AS_ASCII = bytes((*ASCII, *ASCII))
TO_ANSWER = r"tr '\12\40-\176' '\212\240-\376'"
"""The guest's command that sets the bit: of line feeds, and of all that can be seen."""

LATE = 262_144  # bytes that may have arrived with the answer's end


class Answer:
    """One answer of the shell, being heard: bytes with the eighth bit set, between random words."""

    def __init__(self) -> None:
        halves = secrets.token_hex(8), secrets.token_hex(8)
        self.typed_words = " ".join(halves)
        word = "".join(halves).encode()
        self._begin = b" " + word + b" "
        self._end = b" " + word + b"."
        self._words = bytearray()  # what has the eighth bit set
        self.heard = bytearray()
        """All that has arrived meanwhile."""
        self.begun = False
        self.complete = False

    def hear(self, data: bytes) -> None:
        """More has arrived."""
        self.heard += data
        start = max(0, len(self._words) - 2 * len(self._end))
        self._words += data.translate(None, ASCII)
        self.begun = self.begun or self._find(self._begin, start) >= 0
        if self._find(self._end, start) >= 0:
            self.begun = self.complete = True

    def _find(self, word: bytes, start: int) -> int:
        return self._words.find(word.translate(AS_ANSWER), start)

    @property
    def body(self) -> bytes | None:
        """What was between the two words, in ASCII; None where the first was spoilt."""
        begin = self._find(self._begin, 0)
        if begin < 0:
            return None
        begin += len(self._begin)
        return bytes(self._words[begin : self._find(self._end, begin)]).translate(AS_ASCII)

    def others(self) -> tuple[bytes, bytes]:
        """What was heard besides: before the answer, and in its middle or after it."""
        begin = _scattered(self._begin).search(self.heard)
        if begin is None:
            spoilt = EIGHTH_BIT if self.begun else b""
            return bytes(self.heard.translate(None, spoilt)), b""
        before, rest = bytes(self.heard[: begin.start()]), self.heard[begin.start() :]
        end = _scattered(self._end).search(rest, max(0, len(rest) - LATE))
        after = end.end() if end else len(rest)
        return before, bytes(rest[:after].translate(None, EIGHTH_BIT) + rest[after:])


def _scattered(word: bytes) -> re.Pattern[bytes]:
    """The word of an answer, with others' words in its middle."""
    return re.compile(
        rb"[\0-\x7f]*?".join(re.escape(bytes((byte,))) for byte in word.translate(AS_ANSWER))
    )
