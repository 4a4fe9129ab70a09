"""The pytest plugin: fixtures `usernat`, `vm`, `console`, `internet`, `guest_image`.

Installing the package is enough to have it. It owns how pytest asks; all of what is asked is in
`qemu_usernat.testing`, which is imported only where a test uses it.

A test that is a plain function gets objects whose methods wait; one that is a coroutine, of
pytest-trio for example, gets those that it awaits.
"""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from qemu_usernat.primitives.errors import UserError

if TYPE_CHECKING:
    from qemu_usernat.testing.blocking import Console, Machine, Network
    from qemu_usernat.testing.guest_image import GuestImage
    from qemu_usernat.testing.internet import Internet
    from qemu_usernat.testing.session import HarnessSession, Options

MARKER = (
    "usernat(**options): how the test's network and machine are made: the options of "
    "VirtualNetwork, GuestImage.build and VirtualMachine, and strict=True to fail the test for "
    "whatever the guest reaches for and the test has not defined"
)
FOLDER = "usernat folder"  # a test's property, for the summary

_session_key = pytest.StashKey["HarnessSession"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options and settings."""
    group = parser.getgroup("usernat", "virtual machines on a network of the test's")
    group.addoption(
        "--usernat-accel",
        choices=("auto", "kvm", "tcg"),
        default="auto",
        help="what runs the guests; auto: KVM if a guest truly boots with it, else TCG",
    )
    group.addoption(
        "--usernat-keep",
        action="store_true",
        help="keep logs and capture of every test with a network, not only of those that fail",
    )
    parser.addini(
        "usernat_scope",
        "which tests share a running guest: those of a session, of a module, or, with function, "
        "none (the default)",
        default="function",
    )


def pytest_configure(config: pytest.Config) -> None:
    """The marker, and whether the settings are right."""
    config.addinivalue_line("markers", MARKER)
    _scope(config)


def _scope(config: pytest.Config) -> str:
    scope = str(config.getini("usernat_scope"))
    if scope not in ("function", "module", "session"):
        raise pytest.UsageError(f"usernat_scope is {scope!r}; allowed: function, module or session")
    return scope


# -- fixtures


@pytest.fixture(scope="session")
def _usernat_session(pytestconfig: pytest.Config) -> Iterator["HarnessSession"]:
    from qemu_usernat.testing.ending import get_sigterm_from_parent, sigterm_is_ctrl_c
    from qemu_usernat.testing.session import HarnessSession

    if hasattr(pytestconfig, "workerinput"):  # pytest-xdist's, which would notice in five seconds
        get_sigterm_from_parent()
    accelerator = pytestconfig.getoption("--usernat-accel")
    session = HarnessSession(
        None if accelerator == "auto" else accelerator, pytestconfig.getoption("--usernat-keep")
    )
    pytestconfig.stash[_session_key] = session
    with sigterm_is_ctrl_c():
        try:
            yield session
        finally:
            session.close()


@pytest.fixture
def internet() -> "Internet":
    """The hermetic internet of the test: everything that its guest can reach; empty at first.

    Its certificates are trusted by the machine of `vm`.
    """
    from qemu_usernat.testing.guest_image import default_cache
    from qemu_usernat.testing.internet import Internet
    from qemu_usernat.testing.internet.authority import kept_authority

    return Internet(authority=kept_authority(default_cache()))


@pytest.fixture
def usernat(
    _usernat_session: "HarnessSession",
    internet: "Internet",
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator["Network"]:
    """The network between guest and `internet`: flows, verdicts, capture, faults, server."""
    scope = _scope(request.config)
    alone = "vm" not in request.fixturenames
    node: pytest.Item = request.node
    reach = {"function": node.nodeid, "module": node.nodeid.partition("::")[0], "session": ""}
    name = "usernat-" + re.sub(r"\W+", "-", node.name)[:40]
    try:
        network = _usernat_session.begin(
            _options(request),
            reach[scope],
            internet,
            lambda: tmp_path_factory.mktemp(name),
            alone=alone,
        )
        node.user_properties.append((FOLDER, str(_usernat_session.folder)))
        yield _for_test(network, request)
    finally:
        _usernat_session.end(shared=not alone and scope != "function")


@pytest.fixture
def guest_image(internet: "Internet", request: pytest.FixtureRequest) -> "GuestImage":
    """What `vm` boots, unless its marker names something else; may be overridden."""
    from qemu_usernat.testing.guest_image import GuestImage

    return GuestImage.build(ca=internet.ca_pem, **_options(request).image)


@pytest.fixture
def vm(
    _usernat_session: "HarnessSession", usernat: "Network", request: pytest.FixtureRequest
) -> "Machine":
    """A guest that has booted, on the network of `usernat`."""
    image = None
    if _options(request).boots_image:
        image = request.getfixturevalue("guest_image")
    machine: Machine = _for_test(_usernat_session.machine(image), request)
    return machine


@pytest.fixture
def console(vm: "Machine") -> "Console":
    """The shell of `vm`: ``console.exec("uname").output``."""
    return vm.console


def _options(request: pytest.FixtureRequest) -> "Options":
    from qemu_usernat.testing.session import Options

    words: dict[str, Any] = {}
    for marker in reversed(list(request.node.iter_markers("usernat"))):  # the nearest one wins
        if marker.args:
            raise pytest.UsageError("usernat(…) has options by name only: usernat(memory=1024)")
        words |= marker.kwargs
    try:
        return Options.of(words)
    except UserError as error:
        raise pytest.UsageError(f"{request.node.nodeid}: {error}") from error


def _for_test(value: Any, request: pytest.FixtureRequest) -> Any:
    """A facade whose methods wait, or for a coroutine what it stands for."""
    from qemu_usernat.testing.bridge import bridged

    test = request.function
    inner = getattr(getattr(test, "hypothesis", None), "inner_test", test)
    return bridged(value.behind, value.loop) if inspect.iscoroutinefunction(inner) else value


# -- what a person is told


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A failure brings what the guest said, what the network did, and where the rest is."""
    session = item.config.stash.get(_session_key, None)
    if "usernat" not in getattr(item, "fixturenames", ()) or call.when == "teardown":
        session = None
    if session is not None and call.excinfo is not None:
        session.explain(call.excinfo.value)
    report: pytest.TestReport = yield  # type: ignore[assignment]
    if session is not None and report.failed:
        for heading, text in session.on_failure():
            report.sections.append((f"usernat: {heading}", text))
    return report  # type: ignore[return-value]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """With --usernat-keep: where everything is."""
    if not config.getoption("--usernat-keep"):
        return
    folders = {
        str(value)
        for reports in terminalreporter.stats.values()
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == FOLDER and Path(str(value)).exists()
    }
    if folders:
        terminalreporter.section("usernat: kept logs and captures")
        for folder in sorted(folders):
            terminalreporter.line(folder)
