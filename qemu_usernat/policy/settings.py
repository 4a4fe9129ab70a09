"""The table ``[policy]``: policies and how they are applied, as a value, from TOML and to TOML.

    [policy]
    default = "deny"                          # required once [policy] exists
    mode = "enforce"                          # or "learn": tell, and let through
    on_deny = "refuse"                        # or "drop"
    [[policy.rule]]
    name = "code"
    allow = ["*.github.com", "pypi.org"]      # or deny, or log: a string or a list
    on = "tcp/443"
    [[policy.expect]]                         # checked when the table is read
    flow = "tcp pypi.org:443"
    verdict = "allow"
    [policy.guest."52:54:00:12:34:57"]        # or the name of a link
    default = "allow"

What is not known, empty, said twice or not expected is a mistake of the user, and nothing is taken
of a table that has one.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from attrs import evolve, field, frozen

from qemu_usernat.policy.flows import WrittenFlow, judge_flow, judge_for, parse_flow
from qemu_usernat.policy.groups import Groups
from qemu_usernat.policy.rules import (
    ACTIONS,
    ALLOW,
    DENY,
    NetworkPolicy,
    Rule,
    make_rule,
)
from qemu_usernat.policy.why import Why
from qemu_usernat.primitives.addresses import format_mac, parse_mac
from qemu_usernat.primitives.errors import UserError

TABLE = "policy"

ENFORCE, LEARN = "enforce", "learn"
REFUSE, DROP = "refuse", "drop"


def _one_of(*allowed: str) -> Callable[[Any, Any, str], None]:
    def check(settings: Any, attribute: Any, value: str) -> None:
        if value not in allowed:
            words = " or ".join(f'"{word}"' for word in allowed)
            raise UserError(f'{attribute.name} is "{value}"; allowed: {words}')

    return check


@frozen
class Expect:
    """What the writer of a policy expects of it."""

    flow: WrittenFlow
    verdict: str = field(validator=_one_of(ALLOW, DENY))


@frozen(kw_only=True)
class PolicySettings:
    """All that is said of policies."""

    policy: NetworkPolicy
    guests: Mapping[str, NetworkPolicy] = field(factory=dict)
    """In place of `policy`, by MAC address as text or by the name of a link."""
    mode: str = field(default=ENFORCE, validator=_one_of(ENFORCE, LEARN))
    on_deny: str = field(default=REFUSE, validator=_one_of(REFUSE, DROP))
    expects: tuple[Expect, ...] = ()

    def policy_of(self, guest: str | None) -> NetworkPolicy:
        """Of a guest, by one of its keys, or of all that have none of their own; UserError."""
        if guest is None:
            return self.policy
        key = _guest_key(guest)
        if key not in self.guests:
            known = ", ".join(self.guests) or "there are none"
            raise UserError(f'guest "{guest}" has no policy of its own; allowed: {known}')
        return self.guests[key]

    def preceded_by(self, rules: Sequence[Rule]) -> "PolicySettings":
        """The same, with rules before all others, for every guest."""

        def longer(policy: NetworkPolicy) -> NetworkPolicy:
            return evolve(policy, rules=(*rules, *policy.rules))

        return evolve(
            self,
            policy=longer(self.policy),
            guests={key: longer(policy) for key, policy in self.guests.items()},
        )

    def check_guests(self, links: Sequence[str]) -> None:
        """UserError names a guest that is neither a MAC address nor one of these links."""
        for key in self.guests:
            if key not in links and not _is_mac(key):
                raise UserError(
                    f'key "{TABLE}.guest."{key}"": no link is called so; allowed: a MAC address, '
                    f"or one of {', '.join(links)}"
                )

    def check_expects(self, groups: Groups, origin: str = "") -> None:
        """UserError names every expectation that does not hold."""
        judge = judge_for(self.policy, groups)
        failed = []
        for number, expect in enumerate(self.expects, 1):
            verdict = judge_flow(judge, expect.flow)
            if verdict.action != expect.verdict:
                why = [] if verdict.why is Why.RULE else [verdict.why.value]
                why += [f"rule {verdict.rule}"] if verdict.rule else []
                failed.append(
                    f'{origin}key "{TABLE}.expect[{number}]": {expect.flow} is expected to '
                    f"{expect.verdict}, but the policy says {verdict.action}"
                    f" ({', '.join(why)})"
                )
        if failed:
            raise UserError("\n".join(failed))


def settings_of_rules(rules: Sequence[Rule]) -> PolicySettings:
    """Of rules alone, as they stand on a command line: where one allows, all else is denied."""
    default = DENY if any(rule.action == ALLOW for rule in rules) else ALLOW
    return PolicySettings(policy=NetworkPolicy(default, tuple(rules)))


# -- from TOML


def read_settings(table: Any, origin: str) -> PolicySettings:
    """The value of a table ``[policy]`` as tomllib reads it; UserError.

    `origin` says where the table is, for messages: ``net.toml: ``.
    """
    reader = _Reader(origin)
    known = ("default", "rule", "mode", "on_deny", "expect", "guest")
    items = reader.table(table, TABLE, known)
    guests: dict[str, NetworkPolicy] = {}
    for written, value in reader.mapping(items.get("guest", {}), f"{TABLE}.guest").items():
        place = f'{TABLE}.guest."{written}"'
        key = _guest_key(written)
        if not key:
            raise reader.mistake(place, "is empty", "a MAC address, or the name of a link")
        if key in guests:
            raise reader.mistake(place, "is given twice, in two ways of writing", "once each")
        guests[key] = reader.policy(reader.table(value, place, ("default", "rule")), place)
    expects = tuple(
        reader.expect(value, place)
        for value, place in reader.tables(items.get("expect", []), f"{TABLE}.expect")
    )
    return PolicySettings(
        policy=reader.policy(items, TABLE),
        guests=guests,
        mode=reader.choice(items, "mode", (ENFORCE, LEARN)),
        on_deny=reader.choice(items, "on_deny", (REFUSE, DROP)),
        expects=expects,
    )


def _is_mac(key: str) -> bool:
    try:
        parse_mac(key)
    except ValueError:
        return False
    return True


def _guest_key(written: str) -> str:
    """A MAC address as it is written elsewhere; else the name of a link as it is."""
    try:
        return format_mac(parse_mac(written))
    except ValueError:
        return written


@frozen
class _Reader:
    """Reads parts of a table, and says where in it a mistake is."""

    origin: str

    def mistake(self, place: str, what: str, allowed: str) -> UserError:
        return UserError(f'{self.origin}key "{place}" {what}; allowed: {allowed}')

    def mapping(self, value: Any, place: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.mistake(place, f"is {_show(value)}", f"a table [{place}]")
        return value

    def table(self, value: Any, place: str, known: Sequence[str]) -> dict[str, Any]:
        """The items of a table with these keys and no others."""
        found: dict[str, Any] = {}
        for written, item in self.mapping(value, place).items():
            key = written.replace("-", "_")
            if key in found:
                raise UserError(
                    f'{self.origin}key "{place}.{written}" is given twice, with a dash and with '
                    "an underscore"
                )
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                hint = f'did you mean "{close[0]}"? ' if close else ""
                raise UserError(
                    f'{self.origin}key "{place}.{written}" is not known; {hint}allowed in here: '
                    f"{', '.join(sorted(known))}"
                )
            found[key] = item
        return found

    def tables(self, value: Any, place: str) -> Iterator[tuple[Any, str]]:
        """Each of an array of tables, and its place, counted from 1."""
        if not isinstance(value, list):
            raise self.mistake(place, f"is {_show(value)}", f"tables [[{place}]]")
        for number, item in enumerate(value, 1):
            yield item, f"{place}[{number}]"

    def texts(self, value: Any, place: str, what: str) -> list[str]:
        """A string, or a list of strings that is not empty."""
        given = [value] if isinstance(value, str) else value
        if not isinstance(given, list) or not all(isinstance(item, str) for item in given):
            raise self.mistake(place, f"is {_show(value)}", f"{what}, as a string or a list")
        if not given:
            raise self.mistake(place, "is an empty list", f"at least one of {what}")
        return given

    def choice(self, items: Mapping[str, Any], key: str, allowed: Sequence[str]) -> str:
        """One of some words; the first if nothing is said."""
        value = items.get(key, allowed[0])
        if value not in allowed or not isinstance(value, str):
            words = " or ".join(f'"{word}"' for word in allowed)
            raise self.mistake(f"{TABLE}.{key}", f"is {_show(value)}", words)
        return value

    def policy(self, items: Mapping[str, Any], place: str) -> NetworkPolicy:
        if "default" not in items:
            raise self.mistake(
                f"{place}.default", "is missing", f'"{DENY}" or "{ALLOW}", which has to be said'
            )
        default = items["default"]
        if default not in (ALLOW, DENY):
            raise self.mistake(f"{place}.default", f"is {_show(default)}", f'"{DENY}" or "{ALLOW}"')
        rules = [
            self.rule(value, where)
            for value, where in self.tables(items.get("rule", []), f"{place}.rule")
        ]
        try:
            return NetworkPolicy(default, tuple(rules))
        except UserError as error:
            raise UserError(f'{self.origin}key "{place}.rule": {error}') from error

    def rule(self, value: Any, place: str) -> Rule:
        items = self.table(value, place, (*ACTIONS, "name", "on"))
        actions = [action for action in ACTIONS if action in items]
        if len(actions) != 1:
            what = f"has {' and '.join(actions)}" if actions else "has no action"
            raise self.mistake(place, what, f"exactly one of {', '.join(ACTIONS)}")
        (action,) = actions
        name = items.get("name")
        if name is not None and not isinstance(name, str):
            raise self.mistake(f"{place}.name", f"is {_show(name)}", "a string")
        places = self.texts(items[action], f"{place}.{action}", "places")
        on = self.texts(items["on"], f"{place}.on", "services") if "on" in items else None
        try:
            return make_rule(action, places, on, name)
        except UserError as error:
            raise UserError(f'{self.origin}key "{place}": {error}') from error

    def expect(self, value: Any, place: str) -> Expect:
        items = self.table(value, place, ("flow", "verdict"))
        for key in ("flow", "verdict"):
            if not isinstance(items.get(key), str):
                what = f"is {_show(items[key])}" if key in items else "is missing"
                raise self.mistake(f"{place}.{key}", what, "a string")
        try:
            return Expect(parse_flow(items["flow"]), items["verdict"])
        except UserError as error:
            raise UserError(f'{self.origin}key "{place}": {error}') from error


def _show(value: Any) -> str:
    """A value as TOML would write it, near enough for a message."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "[" + ", ".join(map(_show, value)) + "]"
    return str(value)


# -- to TOML


def to_toml(settings: PolicySettings) -> str:
    """As a file has it; `read_settings` reads it."""
    lines = [f"[{TABLE}]", f"default = {_quoted(settings.policy.default)}"]
    if settings.mode != ENFORCE:
        lines.append(f"mode = {_quoted(settings.mode)}")
    if settings.on_deny != REFUSE:
        lines.append(f"on_deny = {_quoted(settings.on_deny)}")
    lines += _rule_lines(settings.policy, TABLE)
    for expect in settings.expects:
        lines += ["", f"[[{TABLE}.expect]]", f"flow = {_quoted(str(expect.flow))}"]
        lines.append(f"verdict = {_quoted(expect.verdict)}")
    for key, policy in settings.guests.items():
        place = f"{TABLE}.guest.{_quoted(key)}"
        lines += ["", f"[{place}]", f"default = {_quoted(policy.default)}"]
        lines += _rule_lines(policy, place)
    return "\n".join(lines) + "\n"


def _rule_lines(policy: NetworkPolicy, place: str) -> Iterator[str]:
    for rule in policy.rules:
        yield from ("", f"[[{place}.rule]]")
        if rule.name is not None:
            yield f"name = {_quoted(rule.name)}"
        yield f"{rule.action} = {_listed(rule.places)}"
        if rule.services:
            yield f"on = {_listed(rule.services)}"


def _listed(items: Sequence[object]) -> str:
    texts = [_quoted(str(item)) for item in items]
    return texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"


def _quoted(text: str) -> str:
    """A basic string of TOML 1.0: controls, quotes and backslashes are written as numbers."""
    return (
        '"'
        + "".join(
            f"\\u{ord(letter):04x}" if letter in '"\\\x7f' or letter < " " else letter
            for letter in text
        )
        + '"'
    )
