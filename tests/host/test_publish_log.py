"""What whoever runs the server reads of published ports."""

from structlog.testing import capture_logs

from qemu_usernat.admission import Guest
from qemu_usernat.config.publish import Publication, parse_publication
from qemu_usernat.host.publish_log import QUIET_TIME, PublishLog

WEB, NAMED = parse_publication("8080:80"), parse_publication("8081:web:80")
FIRST = Guest(bytes.fromhex("525400123456"), "unix:/a", bytes([10, 0, 2, 15]))
NO_GUEST = "publish.no_guest"


def lines(log: PublishLog, *said: tuple[Publication, str, float]) -> list[tuple[str, str]]:
    with capture_logs() as logs:
        for each in said:
            log.on_failed(*each)
    return [(each["published"], each["why"]) for each in logs]


def test_a_failed_client_is_told_of_once_a_minute_for_each_publication() -> None:
    """With the reason; whoever floods a port does not flood the log."""
    log = PublishLog({}, [WEB, NAMED])
    assert lines(
        log,
        *[(WEB, NO_GUEST, 100 + second) for second in range(50)],
        (WEB, "publish.no_answer", 151),
        (NAMED, "publish.no_answer", 151),
        (WEB, NO_GUEST, 100 + QUIET_TIME),
    ) == [
        ("tcp:0.0.0.0:8080 to port 80 of the guest", "no guest was there in time"),
        ("tcp:0.0.0.0:8081 to port 80 of web", "the guest did not answer"),
        ("tcp:0.0.0.0:8080 to port 80 of the guest", "no guest was there in time"),
    ]


def test_whom_ports_without_a_guest_lead_to_is_told_once() -> None:
    """And, as a warning, that there are several; neither where each port names its guest, and what
    was not told is told when such a port is published later."""
    published = [NAMED]
    log = PublishLog({"network": "lab"}, published)
    with capture_logs() as logs:
        log.on_resident(FIRST)
        log.on_several()
        assert logs == []
        published.append(WEB)
        log.look()
        log.look()
    leads, several = logs
    assert leads == {
        "event": "published ports without GUEST_ADDR lead to",
        "log_level": "info",
        "network": "lab",
        "guest": "10.0.2.15",
        "mac": "52:54:00:12:34:56",
        "link": "unix:/a",
    }
    assert several["log_level"] == "warning"
    assert several["published"] == ["tcp:0.0.0.0:8080 to port 80 of the guest"]
