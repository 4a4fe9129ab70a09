"""The hermetic internet of a test: hosts, names and services in the test's own process."""

from qemu_usernat.testing.internet.applications import Response
from qemu_usernat.testing.internet.hosts import InternetHost
from qemu_usernat.testing.internet.internet import Internet
from qemu_usernat.testing.internet.records import Connection, DnsQuery, HandlerFailure, Unexpected
from qemu_usernat.testing.internet.streams import HostStream
from qemu_usernat.testing.internet.web import Request

__all__ = [
    "Connection",
    "DnsQuery",
    "HandlerFailure",
    "HostStream",
    "Internet",
    "InternetHost",
    "Request",
    "Response",
    "Unexpected",
]
