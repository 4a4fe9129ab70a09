"""The two ways a setting arrives, TOML and command line, joined into a `Config` for each network.

What each key is, `settings` says; what a file looks like, `written`. An option wins over the file,
key by key. The table ``[policy]`` is read by `qemu_usernat.policy.settings`; rules of the command
line come before it.
"""

import difflib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any

import attrs

from qemu_usernat.config.boot import Boot
from qemu_usernat.config.endpoints import (
    Endpoint,
    FdEndpoint,
    JoinEndpoint,
    TcpEndpoint,
    UnixEndpoint,
    default_endpoint,
)
from qemu_usernat.config.network import Network, SettingError
from qemu_usernat.config.settings import (
    APART,
    LISTS,
    POLICY,
    SETTINGS,
    TABLE,
    Given,
    Scope,
    read_setting,
)
from qemu_usernat.config.written import Written, WrittenPolicy, parse_toml, read_file
from qemu_usernat.policy.groups import Groups
from qemu_usernat.policy.places import NetworkPlace, RangePlace, Service
from qemu_usernat.policy.redirects import UnixTarget
from qemu_usernat.policy.rules import ALLOW, NetworkPolicy, Rule, parse_rule
from qemu_usernat.policy.settings import PolicySettings, read_settings, settings_of_rules
from qemu_usernat.primitives.errors import UserError


@attrs.frozen(kw_only=True)
class Config:
    """All that the user asked for of one network, checked."""

    name: str = ""
    """Of the network; empty where there is but one."""
    listen: tuple[Endpoint, ...] = ()
    connect: tuple[UnixEndpoint, ...] = ()
    join: tuple[JoinEndpoint, ...] = ()
    """Other servers of the same segment, to connect to."""
    join_listen: tuple[Endpoint, ...] = ()
    """Where others connect to us."""
    verbose: bool = False
    network: Network = attrs.Factory(Network)
    policy: PolicySettings | None = None
    """None: no policy was asked for."""
    audit: Path | None = None
    """Where each verdict becomes a line."""
    lease_file: Path | None = None
    """Where leases outlive the server."""


def check_links(configs: Sequence[Config]) -> None:
    """UserError for a policy of a guest on a link that there will never be.

    A policy that several networks share may name the links of all of them.
    """
    for config in configs:
        alike = [each for each in configs if each.policy == config.policy]
        endpoints = [where for each in alike for where in (*each.listen, *each.connect)]
        if config.policy is None or any(isinstance(where, FdEndpoint) for where in endpoints):
            continue  # where an inherited socket is, it says itself
        config.policy.check_guests([str(where) for where in endpoints])


def read_config(
    file: Path | str | None,
    options: Mapping[str, Any],
    *,
    listen: Endpoint | None = None,
    policy_file: Path | None = None,
    rules: Sequence[str] = (),
) -> Config:
    """The same as `read_networks`, of a file that has one network; UserError where it has several.

    `listen` is the endpoint where neither file nor option names one; without it, the user's default
    endpoint, unless there is something to connect to instead.
    """
    config, *more = read_networks(
        file, options, listen=listen, policy_file=policy_file, rules=rules
    )
    if more:
        names = ", ".join(each.name for each in (config, *more))
        raise UserError(
            f"{file}: has several networks ({names}); allowed here: one, in a table [{TABLE}]"
        )
    return config


def read_networks(
    file: Path | str | None,
    options: Mapping[str, Any],
    *,
    listen: Endpoint | None = None,
    policy_file: Path | None = None,
    rules: Sequence[str] = (),
) -> tuple[Config, ...]:
    """The configuration that `file` and the command line's `options` make together, of each
    network.

    `options` maps a key's name to its raw value as TOML would hold it, and holds only
    what was given. `policy_file` holds a table ``[policy]`` and nothing else; `rules` are lines
    that come before its rules.

    UserError for every mistake: the file cannot be read or is not TOML, a key is
    unknown, a value is not allowed, values do not go together.
    """
    written = read_file(Path(file)) if file else [Written()]
    given = {key: _option(key, value) for key, value in options.items()}
    if written[0].name:
        for key, (option, _) in given.items():
            if SETTINGS[key].scope is Scope.OWN:
                raise UserError(
                    f"{option} is one network's own, and {file} has several; allowed: "
                    f'the key "{key}" in a table [[{TABLE}]]'
                )
    if policy_file is not None:
        for each in written:
            if each.policy is not None:
                raise UserError(f"--policy and the table [{POLICY}] of {file} exclude each other")
        policy = f"{policy_file}: ", _policy_table(policy_file)
        written = [attrs.evolve(each, policy=policy) for each in written]
    configs = tuple(_config(each, given, listen, rules) for each in written)
    _check_apart(configs)
    return configs


def _option(key: str, value: Any) -> tuple[str, Any]:
    """What to call it, and its raw value; UserError for one that there is not."""
    if key not in SETTINGS:
        close = difflib.get_close_matches(key.replace("-", "_"), SETTINGS, n=1)
        meant = f'did you mean "{close[0]}"? ' if close else ""
        raise UserError(f'option "{key}" is not known; {meant}allowed: {", ".join(SETTINGS)}')
    is_texts = isinstance(value, list) and all(isinstance(each, str) for each in value)
    return f"--{key.replace('_', '-')}", tuple(value) if is_texts else value


def _config(
    written: Written, options: Given, listen: Endpoint | None, rules: Sequence[str]
) -> Config:
    top, network = _checked(written, written.given)  # also what an option is about to replace
    if options:
        top, network = _checked(written, written.given | options)
    if not top.get("listen"):
        if listen is not None and not written.name:
            top["listen"] = (listen,)
        elif not top.get("connect"):
            if written.name:
                raise UserError(
                    f"{written.origin}nobody can reach it; allowed: with a key "
                    '"listen" or "connect" of its own'
                )
            top["listen"] = (default_endpoint(os.environ, os.getuid()),)
    for key in ("join", "join_listen"):
        if top.get(key) and network.isolate:
            origin = (written.given | options)[key][0]
            raise UserError(
                f"{origin} cannot stand beside isolate: guests that see nobody have no neighbours "
                "elsewhere; allowed: one of both"
            )
    policy = _policy(written.policy, rules, network)
    return Config(name=written.name, network=network, policy=policy, **top)


def _check_apart(configs: Sequence[Config]) -> None:
    """UserError for a socket or a file that two networks have."""
    owners: dict[str, str] = {}
    for config in configs:
        listens = [
            str(each) for each in (*config.listen, *config.join_listen) if not _is_chosen(each)
        ]
        listens += [each.place for each in config.network.publications if each.path]
        for place, times in Counter(listens).items():
            if times > 1:
                of = f'network "{config.name}": ' if config.name else ""
                raise UserError(f"{of}{place} is there twice; allowed: each place only once")
        places = {*listens, *map(str, (*config.connect, *config.join))}
        if config.lease_file is not None:
            places.add(str(config.lease_file))
        for place in sorted(places):
            owner = owners.setdefault(place, config.name)
            if owner != config.name:
                raise UserError(
                    f'network "{config.name}": {place} is of the network "{owner}", too; '
                    "allowed: each only once"
                )
    for one, other in combinations(configs, 2):
        for first, second in product(one.network.publications, other.network.publications):
            if first.overlaps(second):
                raise UserError(
                    f'network "{other.name}": {second.place} is published by the network '
                    f'"{one.name}", too, as {first.place}; allowed: each port of the host, and '
                    "each path, only once"
                )


def _is_chosen(endpoint: Endpoint) -> bool:
    """Whether the kernel says where it is."""
    return isinstance(endpoint, TcpEndpoint) and endpoint.port == 0


def groups_of(network: Network) -> Groups:
    """Which group an address is of, as far as the configuration says."""
    return Groups(
        lan=(network.subnet,),
        gateway=frozenset({network.gateway.packed, network.nameserver.packed}),
        is_guests_name=network.is_guests_name,
    )


def implicit_policy(network: Network) -> NetworkPolicy:
    """What holds without a policy: all but the floor, and of that what the configuration names: the
    host's loopback, and what is redirected, which then goes nowhere else."""
    policy = NetworkPolicy.allow_all()
    if network.host_loopback:
        policy = policy.allow_ip(str(network.gateway))
    for redirect in network.redirects:
        places = [each for each in redirect.places if isinstance(each, NetworkPlace | RangePlace)]
        services = redirect.services or (Service("tcp"), Service("udp"))
        if isinstance(redirect.target, UnixTarget):
            services = redirect.services or (Service("tcp"),)
        if places:
            rule = Rule(ALLOW, tuple(places), services)
            policy = attrs.evolve(policy, rules=(*policy.rules, rule))
    return policy


def _policy(
    written: WrittenPolicy | None, rules: Sequence[str], network: Network
) -> PolicySettings | None:
    """Of a file and of the command line; every ``[[policy.expect]]`` holds."""
    first = [_option_rule(text) for text in rules]
    if written is None:
        return settings_of_rules(first) if first else None
    origin, table = written
    settings = read_settings(table, origin).preceded_by(first)
    settings.check_expects(groups_of(network), origin)
    return settings


def _option_rule(text: str) -> Rule:
    """Of ``--allow`` or ``--deny``, which is the first word."""
    option = f"--{text.partition(' ')[0]}"
    try:
        rule = parse_rule(text)
    except UserError as error:
        raise UserError(f"{option}: {error}") from error
    if rule.name is not None:
        raise UserError(f'{option}: "{text}" has a name; allowed: places, and perhaps "on"')
    return rule


def _policy_table(path: Path) -> Any:
    """Of a file that has nothing else: what it said besides would be lost."""
    document = parse_toml(path)
    for key in document:
        if key != POLICY:
            raise UserError(
                f'{path}: key "{key}" is not known; allowed here: [{POLICY}], and in the file of '
                "--config everything"
            )
    if POLICY not in document:
        raise UserError(f"{path}: has no table [{POLICY}]")
    return document[POLICY]


def _checked(written: Written, given: Given) -> tuple[dict[str, Any], Network]:
    """The values of the keys that are no network's, and the network of the others."""
    values = {key: read_setting(key, *raw) for key, raw in given.items()}
    top: dict[str, Any] = {key: values.pop(key) for key in APART if key in values}
    for key, field in LISTS.items():
        if key in values:
            values[field] = values.pop(key)
    boot = Boot(values.pop("tftp", None), values.pop("bootfile", {}))
    joins = top.get("join", ()), top.get("join_listen", ())
    try:
        network = Network(boot=boot, **values)
        if any(joins) and "first_lease" not in given and "last_lease" not in given:
            # Two servers, neither of which says what it leases, never give one address twice.
            network = network.halved(upper=bool(joins[0]))
        return top, network
    except SettingError as error:
        # A default is never wrong by itself: it clashes with something that was given.
        origin = given[error.key][0] if error.key in given else None
        origin = origin or f"{written.origin}{error.key} (by default)"
        raise UserError(f"{origin} is {error.value}; allowed: {error.allowed}") from error
