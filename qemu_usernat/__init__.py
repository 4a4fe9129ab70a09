"""qemu_usernat: user-mode networking for virtual machines, as a server in Python.

QEMU's ``-netdev stream`` connects to a socket of ours; the guest gets an address,
names, and TCP and UDP to the world, with no privileges on the host.
"""

__version__ = "0.1.0"
