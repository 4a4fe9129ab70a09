"""The policy layer: what a guest may reach, and how that is decided. Pure: no socket, no clock."""
