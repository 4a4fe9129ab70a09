"""The plugin as its users meet it: pytest runs over test files that they would write.

Most have a guest without QEMU; what a real one meets is in tests/e2e.
"""

import pytest

import qemu_usernat.testing.bridge
import qemu_usernat.testing.session  # noqa: F401 - numpy cannot be imported anew for each run
from qemu_usernat.testing.guest_image import default_cache

pytest_plugins = ["pytester"]

CACHE = default_cache()  # pytester has another home

HEADER = """
import pytest
from qemu_usernat.testing import *

SITE = "203.0.113.10"
"""


def run(pytester: pytest.Pytester, test: str, *options: str) -> pytest.RunResult:
    """pytest over one file; the plugin comes by its entry point."""
    pytester.makepyfile(test_it=HEADER + test)
    return pytester.runpytest_inprocess(*options)


def test_a_plain_function_has_a_network(pytester: pytest.Pytester) -> None:
    """Fixtures by name, nothing else to set up."""
    result = run(
        pytester,
        """
def test_it(usernat, internet):
    internet.host("site.example", SITE)
    with usernat.fake_guest() as guest:
        guest.dhcp()
        guest.ping("site.example")
    assert usernat.flows.where(protocol="icmp", name="site.example")
    internet.assert_nothing_unexpected()
""",
    )
    result.assert_outcomes(passed=1)


def test_a_coroutine_has_one_too(pytester: pytest.Pytester) -> None:
    """The same fixtures; what waits is awaited."""
    result = run(
        pytester,
        """
@pytest.mark.trio
async def test_it(usernat, internet):
    internet.host("site.example", SITE)
    async with usernat.fake_guest() as guest:
        await guest.dhcp()
        await guest.ping("site.example")
    assert usernat.flows.where(protocol="icmp", name="site.example")
""",
    )
    result.assert_outcomes(passed=1)


@pytest.mark.parametrize("scope", ["function", "module", "session"])
def test_each_test_has_an_internet_of_its_own(pytester: pytest.Pytester, scope: str) -> None:
    """Whether or not they share a guest: the same name may be defined anew, records are empty."""
    pytester.makeini(f"[pytest]\nusernat_scope = {scope}\n")
    result = run(
        pytester,
        """
@pytest.mark.parametrize("address", ["203.0.113.1", "203.0.113.2"])
def test_it(usernat, internet, address):
    internet.host("site.example", address)
    assert not usernat.flows and not usernat.capture.frames() and not usernat.counters
    assert not usernat.faults.rules
    usernat.faults.drop(anything)
    usernat.faults.pause()
    usernat.faults.resume()
    for rule in tuple(usernat.faults.rules):
        rule.remove()
    usernat.faults.drop(arp & (eth.source == "52:54:00:00:00:99"))
    with usernat.fake_guest() as guest:
        guest.dhcp()
        assert guest.resolve("site.example") == [address]
        guest.ping("site.example")
""",
    )
    result.assert_outcomes(passed=2)


@pytest.mark.qemu
@pytest.mark.timeout(600)
def test_a_shared_guest_waits_while_a_test_does_without_it(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That one has the network to itself; the next finds the guest as it was left."""
    monkeypatch.setenv("QEMU_USERNAT_CACHE", str(CACHE))
    pytester.makeini("[pytest]\nusernat_scope = module\n")
    result = run(
        pytester,
        """
def test_before(console):
    assert console.exec("touch /root/here").status == 0

def test_between(usernat):
    with usernat.fake_guest() as guest:
        assert guest.dhcp().address == "10.0.2.15"

def test_after(console, internet, usernat):
    internet.host("site.example")
    assert console.exec("ls /root").text == "here"
    assert console.exec("ping -c 1 -W 5 site.example").status == 0
    assert [flow.host for flow in usernat.flows] == ["site.example"]
""",
    )
    result.assert_outcomes(passed=3)


@pytest.mark.deep
@pytest.mark.qemu
@pytest.mark.timeout(600)
def test_a_shared_guest_serves_the_next_test_however_it_was_left(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paused it goes on, what keeps it busy ends; if it is gone or deaf there is a new one."""
    monkeypatch.setenv("QEMU_USERNAT_CACHE", str(CACHE))
    pytester.makeini("[pytest]\nusernat_scope = module\n")
    result = run(
        pytester,
        """
def test_pauses(vm, console):
    console.exec("touch /root/here")
    vm.pause()

def test_is_busy(console):
    assert console.exec("ls /root").text == "here"
    console.send_line("sleep 1000")

def test_is_deaf(console):
    assert console.exec("ls /root").text == "here"
    console.send_line("exec sleep 1000 <&- >&- 2>&-")

def test_powers_off(vm, console):
    assert console.exec("ls /root").text == ""
    vm.power_off()

def test_is_new(console):
    assert console.exec("true", timeout=20).status == 0
""",
        "--timeout=100",
    )
    result.assert_outcomes(passed=5)


def test_a_failure_shows_what_the_network_did(pytester: pytest.Pytester) -> None:
    """Events in the report, the capture in a file that is named and kept."""
    result = run(
        pytester,
        """
def test_it(usernat):
    with usernat.fake_guest() as guest:
        guest.dhcp()
        with pytest.raises(OSError):
            guest.connect_tcp("198.51.100.7", 443)
        assert not usernat.internet.unexpected
""",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*- usernat: network -*",
            "*guest: connected*",
            "*tcp 10.0.2.15:* → 198.51.100.7:443, refused*",
            "*unexpected: TCP to 198.51.100.7 port 443*",
            "counters: *",
            "*- usernat: files -*",
            "*capture.pcapng*",
        ]
    )
    (path,) = [line.strip() for line in result.outlines if line.endswith("capture.pcapng")]
    assert (pytester.path / path).stat().st_size > 1000


def test_what_passes_leaves_nothing_unless_it_is_to_be_kept(pytester: pytest.Pytester) -> None:
    """--usernat-keep keeps it, and says where."""
    test = """
def test_it(usernat):
    with usernat.fake_guest() as guest:
        guest.dhcp()
"""
    base = pytester.path / "base"
    run(pytester, test, f"--basetemp={base}").assert_outcomes(passed=1)
    assert not list(base.rglob("capture.pcapng"))
    kept = run(pytester, test, f"--basetemp={base}", "--usernat-keep")
    kept.assert_outcomes(passed=1)
    (capture,) = base.rglob("capture.pcapng")
    kept.stdout.fnmatch_lines(["*usernat: kept logs and captures*", str(capture.parent)])


def test_the_marker_makes_the_network(pytester: pytest.Pytester) -> None:
    """Options by name; the one nearest to the test wins; strict fails for what is undefined."""
    result = run(
        pytester,
        """
pytestmark = pytest.mark.usernat(settings=NetworkSettings(mtu=1400), guests=("a", "b"))

def test_it(usernat):
    with usernat.fake_guest("b") as guest:
        assert guest.dhcp().mtu == 1400

@pytest.mark.usernat(settings=NetworkSettings(mtu=1300))
def test_other(usernat):
    assert usernat.guests == ("a", "b")
    with usernat.fake_guest("a") as guest:
        assert guest.dhcp().mtu == 1300

@pytest.mark.usernat(strict=True)
def test_strict(usernat):
    with usernat.fake_guest("a") as guest:
        guest.dhcp()
        with pytest.raises(OSError):
            guest.ping("198.51.100.7")
""",
    )
    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(["*a guest has reached for what is not defined*"])


def test_a_broken_handler_fails_the_test(pytester: pytest.Pytester) -> None:
    """Whatever the guest made of it."""
    result = run(
        pytester,
        """
async def broken(stream):
    raise RuntimeError("a mistake in a handler")

def test_it(usernat, internet):
    internet.host("site.example", SITE).tcp(80, broken)
    with usernat.fake_guest() as guest:
        guest.dhcp()
        with guest.connect_tcp("site.example", 80) as stream, pytest.raises(Exception):
            stream.receive_some()
""",
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(
        ["E *AssertionError: a handler has failed: RuntimeError: a mistake in a handler"]
    )


def test_a_test_that_fails_by_a_broken_handler_says_so(pytester: pytest.Pytester) -> None:
    """With what the guest has seen of it, and not somewhere else; the test fails once."""
    result = run(
        pytester,
        """
def broken(request):
    raise RuntimeError("a mistake in a handler" + 50 * " that is long" + ", to its end")

def test_it(usernat, internet):
    internet.host("site.example", SITE).http(broken)
    with usernat.fake_guest() as guest:
        guest.dhcp()
        with guest.connect_tcp("site.example", 80) as stream:
            stream.send_all(b"GET / HTTP/1.0\\r\\n\\r\\n")
            stream.receive_some()
""",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "E*Connection reset by peer",
            "E*a handler of the internet has failed: *RuntimeError: a mistake*, to its end",
            "*- usernat: handlers -*",
            '*test_it.py", line *, in broken',
            "RuntimeError: a mistake*, to its end",
            "*- usernat: network -*",
        ]
    )


@pytest.mark.parametrize(
    ("marker", "said"),
    [
        ("usernat(memmory=1)", "*usernat(memmory=…); allowed: *memory*"),
        ("usernat(1)", "*has options by name only*"),
    ],
)
def test_a_wrong_marker_is_told_what_is_allowed(
    pytester: pytest.Pytester, marker: str, said: str
) -> None:
    """And which test it is of."""
    result = run(pytester, f"@pytest.mark.{marker}\ndef test_it(usernat):\n    pass\n")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([said])


def test_a_wrong_scope_is_told_what_is_allowed(pytester: pytest.Pytester) -> None:
    """Before any test runs."""
    pytester.makeini("[pytest]\nusernat_scope = global\n")
    result = run(pytester, "def test_it():\n    pass\n")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*'global'; allowed: function, module or session*"])


def test_tests_run_in_parallel(pytester: pytest.Pytester) -> None:
    """Under pytest-xdist each worker has sockets, folders and networks of its own."""
    result = run(
        pytester,
        """
@pytest.mark.parametrize("number", range(8))
def test_it(usernat, internet, number):
    internet.host("site.example", SITE).https("hello")
    with usernat.fake_guest() as guest:
        guest.dhcp()
        with guest.connect_tcp("site.example", 443):
            pass
    assert len(usernat.flows) == 1
""",
        "-n2",
        "--usernat-keep",
    )
    result.assert_outcomes(passed=8)
    result.stdout.fnmatch_lines(["*usernat: kept logs and captures*", "*usernat-test_it-7*"])


def test_who_does_not_use_it_does_not_pay_for_it(pytester: pytest.Pytester) -> None:
    """The plugin is there in every run of pytest, and imports next to nothing."""
    pytester.makepyfile("""
        import sys

        def test_it():
            assert "qemu_usernat.pytest_plugin" in sys.modules
            assert "qemu_usernat.testing" not in sys.modules
    """)
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(passed=1)
