"""Configuration: what the user asked for, as values that have been checked.

A configuration file (TOML) and the command line meet here and leave as one frozen `Config` for each
network. Everything below receives plain values or the `Network`; nothing below reads a file, an
environment variable or an option again. Every mistake becomes a `UserError` that names the file or
option, the key, the value, and what is allowed.
"""

from qemu_usernat.config.boot import Boot
from qemu_usernat.config.configuration import (
    Config,
    check_links,
    groups_of,
    read_config,
    read_networks,
)
from qemu_usernat.config.endpoints import (
    Endpoint,
    FdEndpoint,
    TcpEndpoint,
    UnixEndpoint,
    default_endpoint,
    parse_endpoint,
)
from qemu_usernat.config.network import Network, SettingError
from qemu_usernat.config.publish import Publication, parse_publication
from qemu_usernat.config.reservations import Reservation

__all__ = [
    "Boot",
    "Config",
    "Endpoint",
    "FdEndpoint",
    "Network",
    "Publication",
    "Reservation",
    "SettingError",
    "TcpEndpoint",
    "UnixEndpoint",
    "check_links",
    "default_endpoint",
    "groups_of",
    "parse_endpoint",
    "parse_publication",
    "read_config",
    "read_networks",
]
