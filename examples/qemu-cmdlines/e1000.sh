#!/bin/sh
# A card that every old system knows. Its driver takes frames of at most 16110 bytes.
. "$(dirname "$0")/common.sh"

serve --listen "unix:$socket" --mtu 1500
qemu -netdev stream,id=net0,server=off,addr.type=unix,addr.path="$socket" \
    -device e1000,netdev=net0,mac=52:54:00:12:34:56
