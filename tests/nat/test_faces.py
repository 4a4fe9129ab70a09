"""As whom a guest sees a client: the ports that are chosen where its own cannot be."""

from qemu_usernat.config.network import Network
from qemu_usernat.lan.addressing import Addressing
from qemu_usernat.nat.faces import PORTS, Face, Faces


def test_while_one_port_is_free_it_is_found() -> None:
    """However many before it are in use, one beside the other."""
    faces = Faces(Addressing(Network()))
    for free in (PORTS[-1], PORTS[0], PORTS[40000]):
        face = faces.choose(None, lambda face, free=free: face[1] == free)  # type: ignore[misc]
        assert face is not None
        assert face[1] == free
    assert faces.choose(None, lambda face: False) is None


def test_ports_in_use_are_passed_once_a_round() -> None:
    """So that thousands of them do not cost each client that comes."""
    tried = 0

    def is_free(face: Face) -> bool:
        nonlocal tried
        tried += 1
        return face[1] >= 20000

    faces = Faces(Addressing(Network()))
    chosen = {faces.choose(None, is_free) for _ in range(40000)}
    assert len(chosen) == 40000
    assert tried <= len(PORTS)
