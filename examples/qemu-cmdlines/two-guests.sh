#!/bin/sh
# Two guests on one server, each with a MAC address of its own and so a lease of its own. The
# second has this terminal; the first answers `ping 10.0.2.15`.
. "$(dirname "$0")/common.sh"

serve --listen "unix:$socket"
SERIAL=file:$room/first.log
qemu -netdev stream,id=net0,server=off,addr.type=unix,addr.path="$socket" \
    -device virtio-net-pci,netdev=net0,mac=52:54:00:12:34:56 </dev/null &
first=$!
trap 'kill $server $first 2>/dev/null && wait $server || true; rm -rf "$room"' EXIT
until grep -q 'guest: up' "$room/first.log" 2>/dev/null; do
    kill -0 "$first" || exit 1
    sleep 0.1
done
unset SERIAL
qemu -netdev stream,id=net0,server=off,addr.type=unix,addr.path="$socket" \
    -device virtio-net-pci,netdev=net0,mac=52:54:00:12:34:57
