#!/bin/sh
# A connected pair of sockets, one end for each: no name in any file system, nobody else gets in.
. "$(dirname "$0")/common.sh"

export KERNEL INITRD QEMU
exec python3 - 3<&0 <<'PYTHON'
import os, socket, subprocess

ours, theirs = socket.socketpair()
a, b = ours.fileno(), theirs.fileno()
server = subprocess.Popen(["qemu-usernat", "serve", "--listen", f"fd:{a}"], pass_fds=[a],
                          stdout=subprocess.DEVNULL)
ours.close()
subprocess.run(
    [os.environ["QEMU"], "-accel", "tcg,thread=multi", "-cpu", "Westmere,+rdrand", "-m", "512",
     "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "mon:stdio",
     "-kernel", os.environ["KERNEL"], "-initrd", os.environ["INITRD"],
     "-append", "console=ttyS1 panic=-1 quiet",
     "-netdev", f"stream,id=net0,server=off,addr.type=fd,addr.str={b}",
     "-device", "virtio-net-pci,netdev=net0,mac=52:54:00:12:34:56"],
    stdin=3, pass_fds=[b],
)
server.terminate()
PYTHON
