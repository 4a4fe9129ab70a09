"""``python -m qemu_usernat`` and the program `qemu-usernat`, ready for signals before all else."""

import sys

from qemu_usernat.signals import interrupt_ends_us


def main() -> int:
    """Run the process's command line; the exit code."""
    interrupt_ends_us()
    from qemu_usernat import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
