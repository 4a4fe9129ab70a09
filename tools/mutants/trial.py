"""One mutant's trial: the tests run on it, in a process of its own, until one of them fails.

The process is a fork of one that has imported all that the tests need but this project itself, so
a trial begins at once. The mutated module is put into the fork's `sys.modules`: no file is
written, and two trials do not meet.

What hangs is ended by its use of the processor, which a busy machine does not change; the limit of
each test follows from what it used without a fault. Hypothesis does not draw by chance here, so
a trial repeated ends the same way.
"""

import gc
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from importlib.util import module_from_spec, spec_from_file_location
from tempfile import TemporaryFile
from typing import IO, Any

import hypothesis.stateful  # noqa: F401  # slow to import: once here, not in each fork
import pytest
import trio.testing  # noqa: F401  # likewise
from attrs import define, frozen
from hypothesis import HealthCheck, Phase, settings

import qemu_usernat.router  # noqa: F401  # for numpy, impacket and the rest; see `forget_the_project`
from tools.mutants.operators import Mutant, difference

MEMORY = 4 << 30
"""Octets of address space: a loop that collects things ends here."""

PROFILE = "mutants"


def prepare(examples: int) -> None:
    """Once, before all trials: how many examples Hypothesis tries, where a test does not say."""
    settings.register_profile(
        PROFILE,
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.explicit, Phase.generate),  # a failure need not be made small
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    gc.freeze()  # what is imported by now is no garbage, and need not be looked at in each fork


class Outcome(Enum):
    """How a trial ends."""

    KILLED = "killed"
    SURVIVED = "survived"
    STILLBORN = "stillborn"
    """The mutant cannot be imported, so it says nothing about the tests: it is not counted."""


@frozen
class Verdict:
    """What one trial has shown."""

    outcome: Outcome
    by: str
    """The test that failed, or what ended the process; empty for a survivor."""
    before: str
    after: str
    used: Mapping[str, float]
    """Processor seconds of each test that ran to its end."""


@define
class Trial:
    """A process that tests a mutant, or no mutant at all."""

    process: int
    _report: IO[str]

    def verdict(self, status: int) -> Verdict:
        """Once the process has ended, with a status of `os.wait`."""
        self._report.seek(0)
        lines = [json.loads(line) for line in self._report]
        self._report.close()
        said: dict[str, Any] = {"before": "", "after": "", "used": {}, "by": ""}
        for line in lines:
            said.update(line)
        if os.WIFSIGNALED(status):
            said["outcome"] = Outcome.KILLED.value
            said["by"] = signal.Signals(os.WTERMSIG(status)).name
        return Verdict(**{**said, "outcome": Outcome(said["outcome"])})


def begin(
    mutant: Mutant | None, rounds: Sequence[Sequence[str]], usual: Mapping[str, float]
) -> Trial:
    """Fork, and let the rounds of test files loose on the mutant, the likely killers first.

    `usual` is the processor seconds that tests use without a fault, by their names.
    """
    report = TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  # `verdict` closes it
    process = os.fork()
    if process:
        return Trial(process, report)
    code = 1
    try:
        _try(mutant, rounds, usual, report)
        code = 0
    finally:
        report.flush()
        os._exit(code)


def _try(
    mutant: Mutant | None,
    rounds: Sequence[Sequence[str]],
    usual: Mapping[str, float],
    report: IO[str],
) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)

    def say(**facts: object) -> None:
        print(json.dumps(facts), file=report, flush=True)

    _forget_the_project()
    _limit_processor(10)
    if mutant is not None:
        text = mutant.text()
        before, after = difference(mutant.module.read_text(), text)
        say(before=before, after=after)
        try:
            _install(mutant, text)
        except Exception as error:
            say(outcome=Outcome.STILLBORN.value, by=repr(error))
            return
    watch = _Watch(usual)
    for files in rounds:
        arguments = ["-x", "-m", "not deep", f"--hypothesis-profile={PROFILE}"]
        arguments += ["-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
        status = pytest.main([*arguments, *files], plugins=[watch])
        if status is not pytest.ExitCode.OK:
            say(outcome=Outcome.KILLED.value, by=watch.failed or str(status))
            return
    say(outcome=Outcome.SURVIVED.value, used=watch.used)


def _forget_the_project() -> None:
    """It was imported for the libraries that it brings: its modules are to meet the mutant."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "qemu_usernat"]:
        del sys.modules[name]


def _install(mutant: Mutant, text: str) -> None:
    """Import the mutated module in the place of the sound one."""
    name = ".".join(mutant.module.with_suffix("").parts)
    spec = spec_from_file_location(name, mutant.module)
    assert spec is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    exec(compile(text, mutant.module, "exec"), vars(module))


def _limit_processor(seconds: float) -> None:
    """From now on: SIGPROF ends the process that uses more."""
    signal.setitimer(signal.ITIMER_PROF, seconds)


class _Watch:
    """A plugin of pytest: gives each test its limit, and notes what it used, or that it failed."""

    def __init__(self, usual: Mapping[str, float]) -> None:
        self.usual = usual
        self.used: dict[str, float] = {}
        self.failed = ""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        _limit_processor(5 + 5 * self.usual.get(item.nodeid, 10))
        begun = time.process_time()
        result = yield
        self.used[item.nodeid] = time.process_time() - begun
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed = self.failed or report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed = self.failed or report.nodeid
