#!/bin/sh
# TCP in place of a unix socket. Anyone who reaches the port is a guest: keep it on loopback.
. "$(dirname "$0")/common.sh"

: "${PORT:=4444}"
serve --listen "tcp:127.0.0.1:$PORT"
qemu -netdev stream,id=net0,server=off,addr.type=inet,addr.host=127.0.0.1,addr.port="$PORT" \
    -device virtio-net-pci,netdev=net0,mac=52:54:00:12:34:56
