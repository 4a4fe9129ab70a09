"""The policy: which of a guest's flows are let through, and why; it knows no sockets and no TCP."""
