#!/bin/sh
# For a guest that must have Ethernet's own MTU.
. "$(dirname "$0")/common.sh"

serve --listen "unix:$socket" --mtu 1500
qemu -netdev stream,id=net0,server=off,addr.type=unix,addr.path="$socket" \
    -device virtio-net-pci,netdev=net0,mac=52:54:00:12:34:56
