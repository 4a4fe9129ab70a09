"""The edge towards the guests: how QEMU is told to find us, reached, and spoken to."""
