#!/bin/sh
# needs QEMU 9.2
# QEMU 9.2 and later: the same in milliseconds; 10.2 knows only this one.
. "$(dirname "$0")/common.sh"

serve --listen "unix:$socket"
qemu -netdev stream,id=net0,server=off,addr.type=unix,addr.path="$socket",reconnect-ms=1000 \
    -device virtio-net-pci,netdev=net0,mac=52:54:00:12:34:56
