"""``python -m qemu_usernat``."""

import sys

from qemu_usernat.cli import main

if __name__ == "__main__":
    sys.exit(main())
