#!/bin/sh
# The other way round: QEMU listens, and the server connects, again after each restart of either.
. "$(dirname "$0")/common.sh"

qemu-usernat serve --connect "unix:$socket" >/dev/null &
server=$!
qemu -netdev stream,id=net0,server=on,addr.type=unix,addr.path="$socket" \
    -device virtio-net-pci,netdev=net0,mac=52:54:00:12:34:56
