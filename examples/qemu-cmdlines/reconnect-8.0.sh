#!/bin/sh
# needs QEMU 8.0
# QEMU 8.0 to 9.1: after a lost connection it tries again every second.
. "$(dirname "$0")/common.sh"

serve --listen "unix:$socket"
qemu -netdev stream,id=net0,server=off,addr.type=unix,addr.path="$socket",reconnect=1 \
    -device virtio-net-pci,netdev=net0,mac=52:54:00:12:34:56
