"""Try every mutant, keep a ledger, print the report: `make mutants`, or `… ARGS="receiver rtt"`.

The ledger makes a run that was stopped go on where it was. A mutant that was killed is not tried
again while its module stays as it is; one that survived is, for the tests may have become better.
Delete the ledger to begin anew; give the survivors of a first run more `--examples` in a second.

`explained.toml` says of some mutants why no test can, or should, tell them from the original. They
count as survivors all the same.
"""

import json
import os
import signal
import sys
import tomllib
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from pathlib import Path
from random import Random
from shutil import copyfile, copytree
from tempfile import TemporaryDirectory
from typing import Any

import click

from tools.mutants.operators import Mutant, mutants_of
from tools.mutants.trial import Outcome, Trial, Verdict, begin, prepare

MODULES = Path("qemu_usernat/nat/tcp")
TESTS = Path("tests/nat/tcp")
MORE_TESTS = ("tests/test_router_tcp.py",)
"""Which see the flow at work in the router."""

ROOT = Path(__file__).parents[2]
COPIED = ("pyproject.toml", "qemu_usernat", "tests")

LEDGER = ROOT / "build" / "mutants.jsonl"
EXPLAINED = Path(__file__).parent / "explained.toml"
TARGET = 0.90
SEED = "mutants"
"""Of `--sample`: the same code gives the same draw."""

Ledger = dict[str, dict[str, Any]]
"""The last verdict on each mutant, by its key."""


@click.command()
@click.argument("names", nargs=-1)
@click.option("--jobs", default=os.cpu_count(), show_default=True, help="Trials at a time.")
@click.option("--examples", default=25, show_default=True, help="Of each property.")
@click.option("--sample", type=int, metavar="N", help="Only N of them, drawn from a fixed seed.")
def main(names: Sequence[str], jobs: int, examples: int, sample: int | None) -> None:
    """Mutation testing of the modules NAMES of the TCP engine, or of all."""
    known = {path.stem: path for path in sorted(MODULES.glob("*.py"))}
    if unknown := [name for name in names if name not in known]:
        raise click.UsageError(f"no module {', '.join(unknown)} in {MODULES}: {', '.join(known)}")
    modules = [path for name, path in known.items() if not names or name in names]
    mutants = [mutant for module in modules for mutant in mutants_of(module)]
    if sample is not None:
        mutants = Random(SEED).sample(mutants, min(sample, len(mutants)))
    ledger = read_ledger()
    fresh = [mutant for mutant in mutants if not _is_settled(ledger.get(mutant.key))]
    say(f"{len(mutants)} mutants, {len(mutants) - len(fresh)} of them settled before")
    if fresh:
        prepare(examples)
        try:
            with a_copy():
                try_all(fresh, sound_run(), ledger, jobs)
        except KeyboardInterrupt:
            say("stopped; the report is of what was tried")
    sys.exit(not print_report(mutants, ledger))


@contextmanager
def a_copy() -> Iterator[None]:
    """Go to a copy of code and tests, so that whoever works on them meanwhile disturbs nothing."""
    with TemporaryDirectory(prefix="mutants-") as folder, chdir(folder):
        for name in COPIED:
            copy = copytree if (ROOT / name).is_dir() else copyfile
            copy(ROOT / name, name)
        sys.path[0] = folder
        yield


def _is_settled(entry: Mapping[str, Any] | None) -> bool:
    return entry is not None and entry["outcome"] != Outcome.SURVIVED.value


def say(text: str) -> None:
    click.echo(text, err=True)


# -- the trials


def sound_run() -> dict[str, float]:
    """Processor seconds of each test on the sound engine; they must all pass."""
    files = [*map(str, sorted(TESTS.glob("test_*.py"))), *MORE_TESTS]
    trial = begin(None, [files], {})
    verdict = trial.verdict(os.waitpid(trial.process, 0)[1])
    if verdict.outcome is not Outcome.SURVIVED:
        raise click.ClickException(f"without any fault, {verdict.by} fails already")
    say(f"{len(verdict.used)} tests take {sum(verdict.used.values()):.0f} s without a fault")
    return dict(verdict.used)


def rounds(module: Path, usual: Mapping[str, float]) -> list[list[str]]:
    """The tests that bear the module's name, then all others; quick files first."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for test, used in usual.items():
        seconds[test.partition("::")[0]] += used
    files = sorted(seconds, key=lambda file: seconds[file])
    own = [file for file in files if module.stem in Path(file).stem]
    others = [file for file in files if file not in own]
    return [own, others] if own else [others]


def try_all(
    mutants: Iterable[Mutant], usual: Mapping[str, float], ledger: Ledger, jobs: int
) -> None:
    """Some trials at a time; every verdict goes into the ledger at once."""
    waiting = deque(mutants)
    running: dict[int, tuple[Mutant, Trial]] = {}
    LEDGER.parent.mkdir(exist_ok=True)
    with LEDGER.open("a") as file:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    mutant = waiting.popleft()
                    trial = begin(mutant, rounds(mutant.module, usual), usual)
                    running[trial.process] = mutant, trial
                process, status = os.wait()
                mutant, trial = running.pop(process)
                entry = _entry(mutant, trial.verdict(status))
                ledger[mutant.key] = entry
                print(json.dumps(entry), file=file, flush=True)
                left = len(waiting) + len(running)
                say(f"{left} left; {entry['outcome']:9} {_title(mutant, entry)}")
        finally:
            for process in running:
                os.kill(process, signal.SIGKILL)


def _entry(mutant: Mutant, verdict: Verdict) -> dict[str, Any]:
    return {
        "mutant": mutant.key,
        "outcome": verdict.outcome.value,
        "by": verdict.by,
        "before": verdict.before,
        "after": verdict.after,
    }


def read_ledger() -> Ledger:
    """What earlier runs have found."""
    if not LEDGER.exists():
        return {}
    entries = map(json.loads, LEDGER.read_text().splitlines())
    return {entry["mutant"]: entry for entry in entries}


# -- the report


def print_report(mutants: Iterable[Mutant], ledger: Ledger) -> bool:
    """The score of each module and every survivor, in Markdown; True if the target is met."""
    reasons = _reasons()
    rows: dict[str, Counter[str]] = {}
    survivors = []
    for mutant in mutants:
        entry = ledger.get(mutant.key)
        if entry is None:
            continue
        row = rows.setdefault(mutant.module.name, Counter())
        row[entry["outcome"]] += 1
        if entry["outcome"] == Outcome.SURVIVED.value:
            named = (mutant.module.name, mutant.inside, entry["before"], entry["after"])
            reason = reasons.pop(named, "")
            row["explained"] += bool(reason)
            survivors.append(f"- {_title(mutant, entry)}\n  {reason or '**not explained**'}")
    total = sum(rows.values(), Counter())
    print("| module | mutants | killed | survived | of them explained | killed, % |")
    print("|---|---|---|---|---|---|")
    for name, row in [*rows.items(), ("all", total)]:
        counted = row["killed"] + row["survived"]
        figures = counted, row["killed"], row["survived"], row["explained"]
        print(f"| {name} | {' | '.join(map(str, figures))} | {100 * _share(row):.1f} |")
    print(f"\n{total['stillborn']} more could not be imported, and are not counted.\n")
    print("\n".join(survivors))
    for name, _, before, after in reasons:
        if name in rows:
            print(f"- {name}: `{before}` → `{after}` is explained, but did not survive")
    return _share(total) >= TARGET


def _share(row: Counter[str]) -> float:
    return row["killed"] / max(1, row["killed"] + row["survived"])


def _title(mutant: Mutant, entry: Mapping[str, Any]) -> str:
    place = f"{mutant.module.name}:{mutant.line}"
    return f"{place} `{entry['before']}` → `{entry['after']}`"


def _reasons() -> dict[tuple[str, str, str, str], str]:
    """By module, place, and the lines before and after."""
    entries = tomllib.loads(EXPLAINED.read_text())["mutant"]
    return {(e["module"], e["inside"], e["before"], e["after"]): e["because"] for e in entries}


if __name__ == "__main__":
    main()
