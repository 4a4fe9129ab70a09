"""The server of a test: what goes wrong in it, and whom it refuses, the test gets to know."""

from attrs import define, field

from qemu_usernat.server import Server
from qemu_usernat.testing.recording import RecordingWorld


@define(eq=False)
class ObservedServer(Server):
    """A server of which a test learns the bugs, and whose router tells whom it has refused."""

    bugs: list[Exception] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        Server.__attrs_post_init__(self)
        assert isinstance(self.world, RecordingWorld)
        self.admission.on_decision = self.world.on_decision
        self.admission.on_stray = self.world.on_stray

    def on_bug(self, error: Exception) -> None:
        self.counters.count("server.bug")
        self.bugs.append(error)
