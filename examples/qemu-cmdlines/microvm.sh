#!/bin/sh
# QEMU's machine without PCI: the card is on virtio-mmio, hence virtio-net-device.
. "$(dirname "$0")/common.sh"

# A microvm has no second clock. Under emulation Linux may fail to measure the first one by the
# timer chip, and then waits for ever: so it is told the rate, which is the host's.
khz=$(awk '/^cpu MHz/ { print int($4 * 1000); exit }' /proc/cpuinfo)

serve --listen "unix:$socket"
qemu -machine microvm -append "console=ttyS1 panic=-1 quiet tsc_early_khz=$khz" \
    -netdev stream,id=net0,server=off,addr.type=unix,addr.path="$socket" \
    -device virtio-net-device,netdev=net0,mac=52:54:00:12:34:56
