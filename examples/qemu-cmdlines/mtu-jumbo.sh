#!/bin/sh
# The largest MTU for a guest that does not ask by DHCP: virtio tells it with host_mtu.
. "$(dirname "$0")/common.sh"

serve --listen "unix:$socket" --mtu 65520
qemu -netdev stream,id=net0,server=off,addr.type=unix,addr.path="$socket" \
    -device virtio-net-pci,netdev=net0,mac=52:54:00:12:34:56,host_mtu=65520
