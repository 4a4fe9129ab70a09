"""What the log says of published ports: which guest they lead to, and why a client found none.

A client can be told nothing but a reset; whoever runs the server is told why, once a minute for
each publication, however many come.
"""

from collections.abc import Collection, Mapping

import structlog
from attrs import define, field

from qemu_usernat.admission import Guest
from qemu_usernat.config.publish import Publication
from qemu_usernat.primitives.addresses import format_address, format_mac
from qemu_usernat.primitives.time import SECOND

_log = structlog.get_logger()

QUIET_TIME = 60 * SECOND
"""Between two lines about one publication."""

_REASONS = {
    "publish.no_guest": "no guest was there in time",
    "publish.no_answer": "the guest did not answer",
    "publish.calls_full": "too many clients have come already, or wait for the guest's answer",
    "publish.no_port": "there is no port left under which the guest could see one more",
    "publish.waiting_full": "too many clients wait for a guest already",
    "publish.datagram_lost": "no guest was there in time",
}


@define(eq=False)
class PublishLog:
    """Of one network's publications."""

    label: Mapping[str, str]
    published: Collection[Publication]
    _resident: Guest | None = None
    """Of whom nothing was said yet."""
    _several: bool = False
    """The same of there being several."""
    _told_at: dict[Publication, float] = field(factory=dict)

    def on_resident(self, guest: Guest) -> None:
        """Those without GUEST_ADDR lead to it, from now on."""
        self._resident = guest
        self.look()

    def on_several(self) -> None:
        """It is not the only guest any more."""
        self._several = True
        self.look()

    def look(self) -> None:
        """Say whom those without GUEST_ADDR mean, if there are any."""
        anyones = [str(each) for each in self.published if not each.guest]
        if not anyones:
            return
        guest, self._resident = self._resident, None
        if guest is not None:
            _log.info(
                "published ports without GUEST_ADDR lead to",
                **self.label,
                guest=format_address(guest.address),
                mac=format_mac(guest.mac),
                link=guest.link,
            )
        several, self._several = self._several, False
        if several:
            _log.warning(
                "several guests: published ports without GUEST_ADDR lead to the first; name it",
                **self.label,
                published=anyones,
            )

    def on_failed(self, publication: Publication, counted: str, now: float) -> None:
        """A client there found no guest; the reason is a counter's name."""
        told_at = self._told_at.get(publication)
        if told_at is not None and now - told_at < QUIET_TIME:
            return
        recent = {each: at for each, at in self._told_at.items() if now - at < QUIET_TIME}
        self._told_at = {**recent, publication: now}
        _log.info(
            "client of a published port failed",
            **self.label,
            published=f"{publication}",
            why=_REASONS[counted],
        )
