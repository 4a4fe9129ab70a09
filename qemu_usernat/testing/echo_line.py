"""What the echo of one typed line looks like.

Owns one question: do these bytes begin with it? A terminal that echoes gives back the characters
typed, in order, with nothing between them but what wraps a line (carriage returns, line feeds,
spaces, escape sequences) and, on a console, the kernel's messages; then a line feed.

A line editor may go back and show a part of the line, or of the prompt before it, once more: to
redraw it, or at the screen's edge (readline shows the character there twice). Where it cannot go
back by a line, on a "dumb" terminal, it scrolls instead: a carriage return, "<", and the line from
somewhere on. So what is followed is every place in prompt and line where the cursor may stand.

Spaces at the end of what was typed belong to the echo, also where they stand in the terminal's next
line. If something else follows there, the terminal has left them out.
"""

import re

# Of ECMA-48: control sequences, control strings (a window's title), and single functions.
ESCAPE = rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b\n]*(?:\x07|\x1b\\)|[ -/]+[0-~]|[0-OQ-WYZ`-~])"
PART_OF_ESCAPE = rb"\x1b(?:\[[0-?]*[ -/]*|\][^\x07\x1b\n]*\x1b?|[ -/]*)?"
KERNEL = rb"\[ *\d+\.\d{6}\](?:\[ *[TC]\d+\])? [^\r\n]*\r*\n"  # printk's time stamp, and its line
BETWEEN = re.compile(rb"(?:[ \t\r\n\x08]|" + ESCAPE + rb"|" + KERNEL + rb")+")
SPACE = rb"(?:[\r\n\x08]|" + ESCAPE + rb"|" + KERNEL + rb")*[ \t]"
LINE_END = rb"(?:[ \t\x08]|\r(?![\r\n])|" + ESCAPE + rb"|" + KERNEL + rb")*\r*\n"
UNFINISHED = re.compile(
    rb"(?:[ \t\r\n\x08]|" + ESCAPE + rb"|" + KERNEL + rb")*"
    rb"(?:" + PART_OF_ESCAPE + rb"|\[ *\d*(?:\.\d*(?:\][^\n]*)?)?)?"
)
# All but colours, modes, questions, titles and character sets.
MOVE = re.compile(rb"\x08|\r(?!\r*\n)|\x1b(?!\[[0-?]*[hlmn]|[\] -/])")
CARRIAGE_RETURN, SCROLLED = b"\r<"
PROMPT_SIZE = 512  # bytes; few are longer, with a message behind them
UNSEEN = re.compile(rb"\r|" + ESCAPE + rb"|" + KERNEL)
BLANKS = b" \t\r\n\x08"
NO_LETTERS = BLANKS + b"\x1b["  # may begin what stands between letters
# What an echo of a few letters has at most; so nobody's words are held back for ever, or slowly.
LONGEST = 32_768  # bytes, the kernel's messages in it included
MOST_MOVES = 16


class EchoLine:
    """A line that was sent, and how far its echo is recognised in what is held back."""

    def __init__(self, text: bytes, whole: bool, since: int) -> None:
        self.whole = whole
        """It was sent with its line end, so its echo has one too."""
        self.since = since
        """Where the stream stood when it was sent."""
        self.is_unmistakable = False
        self.is_echoed = False
        """Once, by the terminal, while nobody read."""
        self.letters = b"".join(_shown(byte) for byte in text if byte not in BLANKS)
        after = rb"[\0- []|\Z"
        if self.letters[1:]:
            after += b"|" + re.escape(self.letters[1:2])
        elif not whole:
            after = b""
        self.first = rb"%b(?:%b)" % (re.escape(self.letters[:1]), after)
        """A pattern for where it is worth looking: its first letter, and what may come next."""
        self.at = 0
        """How much of what is held back is recognised."""
        self._longest = LONGEST + 16 * len(self.letters)
        self._most_moves = MOST_MOVES + 4 * len(self.letters)
        self._is_out = False
        self._places = _places(self.letters)
        spaces = len(text) - len(text.rstrip(b" \t"))
        end = LINE_END if whole else b""
        self._end = re.compile(rb"(?:%b){%d}%b" % (SPACE, spaces, end))
        self._end_without_spaces = re.compile(end)

    def judge(self, said: bytearray, start: int, last: bool) -> bool | None:
        """Whether this is what `said` goes on with from `start` on, for `at` bytes.

        None if only more can tell; no more comes if `last`.
        """
        if self._is_out if self.at else not self._begin(said, start):
            return False
        verdict = self._follow(said, start)
        if verdict is None and not last:
            return None
        if not verdict and self._short_end:
            self.at = self._short_end
            return True
        self._is_out = not verdict
        return bool(verdict)

    def overlong(self, held: int) -> int:
        """How much of what is held back has gone on for too long to become an echo."""
        if self._moves > self._most_moves:
            return self.at
        return held if held > self._longest else 0

    def _begin(self, said: bytearray, start: int) -> bool:
        self._returned = start > 0 and said[start - 1] == CARRIAGE_RETURN
        if said[start] != self.letters[0] and not (self._returned and said[start] == SCROLLED):
            return False
        # A bit for each place where the cursor may be, in the prompt and in the line.
        self._in_prompt, self._in_line, self._furthest = 0, 1, 0
        self._prompt_places: dict[int, int] | None = None  # not looked at yet
        self._moves = 0
        self._short_end = 0
        self._is_out = False
        return True

    def _follow(self, said: bytearray, start: int) -> bool | None:
        while True:
            at = start + self.at
            if self._moves > self._most_moves:
                return None
            if self._in_line >> len(self.letters):
                if found := self._end.match(said, at):
                    self.at = found.end() - start
                    return True
                if not self._short_end and (found := self._end_without_spaces.match(said, at)):
                    self._short_end = found.end() - start
            if at == len(said) or said[at] in NO_LETTERS:
                if UNFINISHED.fullmatch(said, at):
                    return None  # a space may yet become that of an end, a bracket the kernel's
                if between := BETWEEN.match(said, at):
                    self._move(between[0], said, start)
                    self.at = between.end() - start
                    continue
            is_scrolled = self._returned and said[at] == SCROLLED
            is_letter = self._show(said[at])
            if is_scrolled:
                self._go_back_from(len(self.letters))
                self._go_back_to_prompt(said, start)
            elif not is_letter:
                return False

    def _move(self, between: bytes, said: bytearray, start: int) -> None:
        """The cursor may have gone back; not to the prompt, if that is in another line."""
        _, line_feed, rest = between.rpartition(b"\n")
        if MOVE.search(rest):
            self._moves += 1
            self._go_back_from(self._furthest)
            if not line_feed:
                self._go_back_to_prompt(said, start)
        self._returned = between.endswith(b"\r")

    def _go_back_from(self, place: int) -> None:
        self._in_line = (2 << place) - 1

    def _go_back_to_prompt(self, said: bytearray, start: int) -> None:
        if self._prompt_places is None:
            prompt = line_before(said, start).translate(None, BLANKS)
            self._prompt_size, self._prompt_places = len(prompt), _places(prompt)
        self._in_prompt = (1 << self._prompt_size) - 1

    def _show(self, byte: int) -> bool:
        """A letter is shown; whether one of these is there."""
        self._in_line = (self._in_line & self._places.get(byte, 0)) << 1
        if self._in_prompt and self._prompt_places is not None:
            self._in_prompt = (self._in_prompt & self._prompt_places.get(byte, 0)) << 1
            if self._in_prompt >> self._prompt_size:  # from the prompt into the line
                self._in_prompt ^= 1 << self._prompt_size
                self._in_line |= 1
        self._furthest = max(self._furthest, self._in_line.bit_length() - 1)
        self._returned = False
        self.at += 1
        return bool(self._in_prompt or self._in_line)


def line_before(said: bytearray, end: int) -> bytes:
    """What stands before the cursor at `end`, but for the kernel's messages."""
    shown = UNSEEN.sub(b"", said[max(0, end - PROMPT_SIZE) : end])
    return bytes(shown).rpartition(b"\n")[2]


def _places(letters: bytes) -> dict[int, int]:
    """For each letter, a bit for each place where it stands."""
    places: dict[int, int] = {}
    for number, byte in enumerate(letters):
        places[byte] = places.get(byte, 0) | 1 << number
    return places


def _shown(byte: int) -> bytes:
    """How a terminal shows a character: control characters as ^C (ECHOCTL)."""
    return b"^" + bytes((byte ^ 0x40,)) if byte < 0x20 or byte == 0x7F else bytes((byte,))
