# shellcheck shell=sh
# Sourced by each example: the guest to boot, and `serve` and `qemu` to call.
# KERNEL and INITRD name another guest; QEMU another QEMU.
set -eu
cd "$(dirname "$0")/../.."
PATH=$PWD/.venv/bin:$PATH
: "${QEMU:=qemu-system-x86_64}"
if [ -z "${KERNEL-}" ]; then
    read -r KERNEL INITRD <<END
$(python -m qemu_usernat.testing)
END
fi

room=$(mktemp -d)
socket=$room/net.sock
server=
trap 'kill $server 2>/dev/null && wait $server || true; rm -rf "$room"' EXIT

# Start the server and wait until it listens.
serve() {
    qemu-usernat serve "$@" >"$room/said" &
    server=$!
    until grep -q '^listening\|^connecting' "$room/said"; do
        kill -0 "$server" || exit 1
        sleep 0.1
    done
}

# A bare machine with its shell on this terminal; the caller adds the network.
# Ctrl-A X ends QEMU, as does `reboot -f` in the guest.
qemu() {
    "$QEMU" -accel tcg,thread=multi -cpu Westmere,+rdrand -m 512 \
        -nodefaults -no-user-config -no-reboot -display none -serial "${SERIAL:-mon:stdio}" \
        -kernel "$KERNEL" -initrd "$INITRD" -append "console=ttyS1 panic=-1 quiet" "$@"
}
