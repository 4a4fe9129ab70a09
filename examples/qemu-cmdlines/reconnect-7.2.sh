#!/bin/sh
# QEMU 7.2: it never connects again. Start the server first, and QEMU again after the server.
. "$(dirname "$0")/common.sh"

serve --listen "unix:$socket"
qemu -netdev stream,id=net0,server=off,addr.type=unix,addr.path="$socket" \
    -device virtio-net-pci,netdev=net0,mac=52:54:00:12:34:56
