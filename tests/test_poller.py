"""The poller over real sockets: who is told of what, and when it is silent."""

import os
import selectors
import socket
from collections.abc import Iterator
from functools import partial

import pytest

from qemu_usernat import poller as poller_module
from qemu_usernat.poller import Poller


class Handler:
    """Notes what it is told; may do something about it."""

    def __init__(self) -> None:
        self.told: list[tuple[str, float]] = []

    def on_readable(self, now: float) -> None:
        self.told.append(("readable", now))

    def on_writable(self, now: float) -> None:
        self.told.append(("writable", now))

    def on_bug(self, now: float) -> None:
        self.told.append(("bug", now))


@pytest.fixture
def poller() -> Iterator[Poller]:
    poller = Poller()
    yield poller
    poller.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    one.setblocking(False)
    with one, other:
        yield one, other


Pair = tuple[socket.socket, socket.socket]


def is_ready(poller: Poller) -> bool:
    """Whether trio would wake for it now."""
    with selectors.DefaultSelector() as outer:
        outer.register(poller.fileno(), selectors.EVENT_READ)
        return bool(outer.select(0))


def turn(poller: Poller, now: float) -> None:
    poller.dispatch(poller.wait(), now)


def test_a_ready_socket_wakes_its_handler(poller: Poller, pair: Pair) -> None:
    """Its handler is told once a round, with the time of the round."""
    handler = Handler()
    poller.watch(pair[0], handler, read=True)
    assert not is_ready(poller)
    assert not poller.wait()
    pair[1].send(b"x")
    assert is_ready(poller)
    turn(poller, 2.0)
    assert handler.told == [("readable", 2.0)]


def test_only_what_was_asked_for_is_told(poller: Poller, pair: Pair) -> None:
    """Readiness to write is not told to whoever waits to read, until that changes."""
    handler = Handler()
    poller.watch(pair[0], handler, read=True)
    pair[1].send(b"x")
    poller.change(pair[0], write=True)
    turn(poller, 1.0)
    poller.change(pair[0], read=True, write=True)
    turn(poller, 2.0)
    assert handler.told == [("writable", 1.0), ("readable", 2.0), ("writable", 2.0)]


def test_the_forgotten_are_told_nothing(poller: Poller, pair: Pair) -> None:
    """After that the poller is idle: it wakes nobody."""
    handler = Handler()
    poller.watch(pair[0], handler, read=True, write=True)
    poller.forget(pair[0])
    pair[1].send(b"x")
    assert not is_ready(poller)
    assert not poller.wait()
    assert handler.told == []


def test_who_cannot_be_watched_is_forgotten(poller: Poller, pair: Pair) -> None:
    """The system refuses a change, here of a descriptor that is gone: the owner may go on."""
    sock = socket.socket(fileno=os.dup(pair[0].fileno()))
    poller.watch(sock, Handler(), read=True)
    os.close(sock.fileno())
    with pytest.raises(OSError, match="Bad file"):
        poller.change(sock, write=True)
    poller.forget(sock)
    poller.forget(sock)
    sock.detach()


@pytest.mark.parametrize("asked", ["readable", "writable"])
def test_a_hang_up_is_told_as_what_was_asked_for(poller: Poller, pair: Pair, asked: str) -> None:
    """Whichever of the two a handler waits for, it hears that the other end is gone."""
    handler = Handler()
    poller.watch(pair[0], handler, read=asked == "readable", write=asked == "writable")
    while asked == "writable":  # until only the end of the other can make it ready
        try:
            pair[0].send(bytes(65536))
        except BlockingIOError:
            break
    pair[1].close()
    turn(poller, 1.0)
    assert handler.told == [(asked, 1.0)]


def test_a_handler_may_forget_others_in_the_middle_of_a_round(poller: Poller, pair: Pair) -> None:
    """Sockets that are ready together may end each other."""
    told: list[Handler] = []

    class Ender(Handler):
        def on_readable(self, now: float) -> None:
            if not told:
                poller.forget(pair[0])
                poller.forget(pair[1])
            told.append(self)

    for sock in pair:
        poller.watch(sock, Ender(), read=True)
        sock.send(b"x")
    turn(poller, 1.0)
    assert told
    assert not poller.wait()


def test_who_has_more_to_do_is_called_in_the_next_round(
    poller: Poller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any socket being ready: waiting ends at once, trio wakes, and then it is quiet."""
    monkeypatch.setattr(poller_module, "AGAIN_TIME", 60)
    called: list[tuple[str, float]] = []
    poller.again(Handler(), lambda now: called.append(("one", now)))
    poller.again(Handler(), lambda now: called.append(("other", now)))
    assert is_ready(poller)
    turn(poller, 1.0)
    assert called == [("one", 1.0), ("other", 1.0)]
    assert not is_ready(poller)
    assert not poller.wait()


def test_those_with_more_to_do_share_the_time_of_a_round(
    poller: Poller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other where there is time for one, and whoever asks again is the last."""
    monkeypatch.setattr(poller_module, "AGAIN_TIME", 0)
    called: list[str] = []

    def work(now: float, name: str) -> None:
        called.append(name)
        if now < 4:
            poller.again(Handler(), partial(work, name=name))

    for name in "abc":
        poller.again(Handler(), partial(work, name=name))
    for now in range(1, 8):
        turn(poller, now)
    assert "".join(called) == "abcabca"[: len(called)]
    assert len(called) == 6
    assert not is_ready(poller)


def test_more_after_more_is_a_round_later(poller: Poller, pair: Pair) -> None:
    """Whoever asks again while it is called waits for the next round, and others have theirs."""
    called: list[float] = []

    def work(now: float) -> None:
        called.append(now)
        if now < 3.0:
            poller.again(Handler(), work)

    handler = Handler()
    poller.watch(pair[0], handler, read=True)
    pair[1].send(b"x")
    poller.again(Handler(), work)
    for now in (1.0, 2.0, 3.0, 4.0):
        turn(poller, now)
    assert called == [1.0, 2.0, 3.0]
    assert handler.told == [("readable", now) for now in (1.0, 2.0, 3.0, 4.0)]


class Raiser(Handler):
    """Has a bug in whatever it is told."""

    def on_readable(self, now: float) -> None:
        raise ValueError("readable")

    def on_writable(self, now: float) -> None:
        raise ValueError("writable")


def test_a_handler_with_a_bug_gives_up_and_the_others_are_told(pair: Pair) -> None:
    """Nobody's bug ends the round; it is said what was raised, and to whom."""
    raised: list[Exception] = []
    poller = Poller(raised.append)
    buggy, sound = Raiser(), Handler()
    poller.watch(pair[0], buggy, write=True)
    poller.watch(pair[1], sound, write=True)
    turn(poller, 1.0)
    assert list(map(str, raised)) == ["writable"]
    assert (buggy.told, sound.told) == ([("bug", 1.0)], [("writable", 1.0)])
    poller.close()


def test_more_to_do_with_a_bug(pair: Pair) -> None:
    """Whoever asked to be called again is called, whatever those before it raise."""
    raised: list[Exception] = []
    poller = Poller(raised.append)
    buggy = Raiser()
    called: list[float] = []
    poller.again(buggy, buggy.on_writable)
    poller.again(Handler(), called.append)
    turn(poller, 1.0)
    assert (list(map(str, raised)), buggy.told, called) == (["writable"], [("bug", 1.0)], [1.0])
    poller.close()


def test_without_anybody_to_tell_a_bug_is_raised(poller: Poller, pair: Pair) -> None:
    """As a test wants it."""
    poller.watch(pair[0], Raiser(), write=True)
    with pytest.raises(ValueError, match="writable"):
        turn(poller, 1.0)


def test_waiting_ends_with_the_first_that_is_ready(poller: Poller, pair: Pair) -> None:
    """Patience is for when there is nothing: it is not spent where there is something."""
    poller.watch(pair[0], Handler(), read=True)
    pair[1].send(b"x")
    ((key, events),) = poller.wait(patience=60.0)
    assert (key.fileobj, events) == (pair[0], selectors.EVENT_READ)
