"""The edge towards the world: sockets of the host, all of them on one readiness object."""
