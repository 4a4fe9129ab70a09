"""A policy: an ordered list of rules and a default, as a value.

It owns what a policy is and how it is written: by calls, as text with one rule a line, and (in
`settings`) as TOML. What follows from it for a flow is `judge`'s. A policy is never changed: each
call gives another one, and the order of calls is the order of rules.

    NetworkPolicy.deny_all().allow_dns().allow_https("*.github.com", "pypi.org")
"""

import re
from collections.abc import Iterable

from attrs import evolve, field, frozen

from qemu_usernat.policy.places import (
    AnyPlace,
    DnsPlace,
    GroupPlace,
    NetworkPlace,
    Place,
    RangePlace,
    Service,
    parse_name,
    parse_place,
    parse_range,
    parse_service,
)
from qemu_usernat.primitives.errors import UserError

ALLOW, DENY, LOG = "allow", "deny", "log"
ACTIONS = (ALLOW, DENY, LOG)

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9 ._-]{0,62}[A-Za-z0-9._-])?")
_DEFAULT = re.compile(r"default\s+(\S+)")
_LINE = re.compile(
    r"(?:(?P<name>[^:,]+):\s+)?(?P<action>allow|deny|log)\s+(?P<places>.*?)(?:\s+on\s+(?P<services>.*))?"
)


def _services_without_repetition(services: Iterable[Service]) -> tuple[Service, ...]:
    return tuple(dict.fromkeys(services))


def _places_without_repetition(places: Iterable[Place]) -> tuple[Place, ...]:
    return tuple(dict.fromkeys(places))


@frozen
class Rule:
    """What is done with flows to some places, on some services or on all."""

    action: str
    """``allow``, ``deny``, or ``log``: noted, and the rules after it decide."""
    places: tuple[Place, ...] = field(converter=_places_without_repetition)
    services: tuple[Service, ...] = field(default=(), converter=_services_without_repetition)
    """None: all."""
    name: str | None = None

    def __attrs_post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise UserError(f'"{self.action}" is no action; allowed: {", ".join(ACTIONS)}')
        if not self.places:
            raise UserError(
                f"a rule to {self.action} has an empty list of places; allowed: at least one, and "
                '"any" for every address'
            )
        if any(isinstance(place, DnsPlace) for place in self.places):
            if len(self.places) > 1:
                raise UserError(
                    '"dns" stands alone in a rule: give the other places one of their own'
                )
            if self.services:
                raise UserError('a rule for "dns" has no services: it is about all names')
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise UserError(
                f'"{self.name}" is no name of a rule; allowed: letters, digits, spaces, ".", "_" '
                'and "-", up to 64'
            )

    def __str__(self) -> str:
        name = f"{self.name}: " if self.name else ""
        on = f" on {', '.join(map(str, self.services))}" if self.services else ""
        return f"{name}{self.action} {', '.join(map(str, self.places))}{on}"


def parse_rule(text: str) -> Rule:
    """One line: ``code: allow *.github.com, pypi.org on tcp/443``; UserError."""
    found = _LINE.fullmatch(text.strip())
    if not found:
        raise UserError(
            f'"{text.strip()}" is no rule; allowed: allow, deny or log, places, and perhaps "on" '
            'and services, like "allow *.github.com, pypi.org on tcp/443"'
        )
    return make_rule(
        found["action"],
        _words(found["places"]),
        None if found["services"] is None else _words(found["services"]),
        found["name"],
    )


def make_rule(
    action: str, places: Iterable[str], services: Iterable[str] | None, name: str | None = None
) -> Rule:
    """A rule of textual parts; UserError. `services` is None where none are named."""
    return Rule(action, tuple(map(parse_place, places)), _services(services), name)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")] if text.strip() else []


def _unique(policy: "NetworkPolicy", attribute: object, rules: tuple[Rule, ...]) -> None:
    seen: set[str] = set()
    for rule in rules:
        if rule.name is not None and rule.name in seen:
            raise UserError(
                f'two rules have the name "{rule.name}"; allowed: a name of its own for each'
            )
        seen.add(rule.name or "")


def _default(policy: "NetworkPolicy", attribute: object, default: str) -> None:
    if default not in (ALLOW, DENY):
        raise UserError(f'default is "{default}"; allowed: "allow" or "deny"')


@frozen
class NetworkPolicy:
    """Rules, of which the first that matches decides, and what is done where none does."""

    default: str = field(validator=_default)
    rules: tuple[Rule, ...] = field(default=(), validator=_unique)

    def __str__(self) -> str:
        """One rule a line, the default last; `parse` reads it."""
        return "\n".join([*map(str, self.rules), f"default {self.default}"])

    @classmethod
    def parse(cls, text: str) -> "NetworkPolicy":
        """The policy that `str` has written, or a person: empty lines and ``#`` are left out.

        UserError names the line.
        """
        rules: list[Rule] = []
        default = None
        for number, line in enumerate(text.splitlines(), 1):
            content = line.partition("#")[0].strip()
            try:
                if not content:
                    continue
                if default is not None:
                    raise UserError('the line "default …" is the last one')
                last = _DEFAULT.fullmatch(content)
                if last:
                    default = last[1]
                else:
                    rules.append(parse_rule(content))
            except UserError as error:
                raise UserError(f"line {number}: {error}") from error
        if default is None:
            raise UserError(
                'there is no default; allowed: a last line "default deny" or "default allow"'
            )
        return cls(default, tuple(rules))

    # -- by calls

    @classmethod
    def allow_all(cls) -> "NetworkPolicy":
        """All that is not of the floor, but for what rules deny."""
        return cls(ALLOW)

    @classmethod
    def deny_all(cls) -> "NetworkPolicy":
        """Nothing, but for what rules allow."""
        return cls(DENY)

    def rule(self, text: str) -> "NetworkPolicy":
        """A rule as text: ``allow *.github.com, pypi.org on tcp/443``."""
        return self._with(parse_rule(text))

    def named(self, name: str) -> "NetworkPolicy":
        """Name the last rule, for records and messages."""
        if not self.rules:
            raise UserError(f'named("{name}"): there is no rule yet')
        return evolve(self, rules=(*self.rules[:-1], evolve(self.rules[-1], name=name)))

    def allow_ip(self, *networks: str, on: str | Iterable[str] | None = None) -> "NetworkPolicy":
        """Addresses and networks: ``allow_ip("192.0.2.7", "10.0.0.0/8", on="tcp/22")``."""
        return self._networks(ALLOW, networks, on)

    def deny_ip(self, *networks: str, on: str | Iterable[str] | None = None) -> "NetworkPolicy":
        """The other way round."""
        return self._networks(DENY, networks, on)

    def allow_ip_range(
        self, first: str, last: str, on: str | Iterable[str] | None = None
    ) -> "NetworkPolicy":
        """All addresses from one to another, both included."""
        return self._with(Rule(ALLOW, (parse_range(first, last),), _services(on)))

    def allow_port(self, port: int, protocol: str | None = None) -> "NetworkPolicy":
        """Every address on that port, of TCP and UDP if `protocol` is not given."""
        return self._port(ALLOW, port, protocol)

    def deny_port(self, port: int, protocol: str | None = None) -> "NetworkPolicy":
        """The other way round."""
        return self._port(DENY, port, protocol)

    def allow_https(self, *places: str) -> "NetworkPolicy":
        """TCP to port 443 of these places; without any, of every address."""
        return self._shortcut(places, "tcp/443")

    def allow_http(self, *places: str) -> "NetworkPolicy":
        """TCP to port 80 of these places; without any, of every address."""
        return self._shortcut(places, "tcp/80")

    def allow_ssh(self, *places: str) -> "NetworkPolicy":
        """TCP to port 22 of these places; without any, of every address."""
        return self._shortcut(places, "tcp/22")

    def allow_ping(self, *places: str) -> "NetworkPolicy":
        """Echo requests to these places; without any, to every address."""
        return self._shortcut(places, "icmp")

    def allow_dns(self) -> "NetworkPolicy":
        """Any name may be looked up: a way out for data, in the names."""
        return self._with(Rule(ALLOW, (DnsPlace(),)))

    def allow_domain(self, *names: str, on: str | Iterable[str] | None = None) -> "NetworkPolicy":
        """Names, and wildcards over them."""
        return self._names(ALLOW, names, on)

    def deny_domain(self, *names: str, on: str | Iterable[str] | None = None) -> "NetworkPolicy":
        """The other way round."""
        return self._names(DENY, names, on)

    def log_domain(self, *names: str, on: str | Iterable[str] | None = None) -> "NetworkPolicy":
        """Only note flows to these names."""
        return self._names(LOG, names, on)

    def allow_group(self, *groups: str, on: str | Iterable[str] | None = None) -> "NetworkPolicy":
        """Groups of addresses: ``allow_group("private")``."""
        return self._groups(ALLOW, groups, on)

    def deny_group(self, *groups: str, on: str | Iterable[str] | None = None) -> "NetworkPolicy":
        """The other way round."""
        return self._groups(DENY, groups, on)

    def _with(self, rule: Rule) -> "NetworkPolicy":
        return evolve(self, rules=(*self.rules, rule))

    def _networks(
        self, action: str, networks: Iterable[str], on: str | Iterable[str] | None
    ) -> "NetworkPolicy":
        places = tuple(map(parse_place, networks))
        for place in places:
            if not isinstance(place, NetworkPlace | RangePlace):
                raise UserError(f'"{place}" is no network; allowed: an address, network or range')
        return self._with(Rule(action, places, _services(on)))

    def _names(
        self, action: str, names: Iterable[str], on: str | Iterable[str] | None
    ) -> "NetworkPolicy":
        return self._with(Rule(action, tuple(map(parse_name, names)), _services(on)))

    def _groups(
        self, action: str, groups: Iterable[str], on: str | Iterable[str] | None
    ) -> "NetworkPolicy":
        places = tuple(GroupPlace(group.strip().lower()) for group in groups)
        return self._with(Rule(action, places, _services(on)))

    def _port(self, action: str, port: int, protocol: str | None) -> "NetworkPolicy":
        text = f"{port}" if protocol is None else f"{protocol}/{port}"
        return self._with(Rule(action, (AnyPlace(),), (parse_service(text),)))

    def _shortcut(self, places: Iterable[str], service: str) -> "NetworkPolicy":
        return self._with(make_rule(ALLOW, tuple(places) or ("any",), (service,)))


def _services(on: str | Iterable[str] | None) -> tuple[Service, ...]:
    """None: all. An empty list is a mistake, and not all."""
    if on is None:
        return ()
    services = tuple(map(parse_service, [on] if isinstance(on, str) else on))
    if not services:
        raise UserError('"on" is an empty list of services; allowed: at least one, or no "on"')
    return services
