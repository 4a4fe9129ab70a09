#!/bin/busybox sh
# The first process of the test guest: devices, drivers, a lease, and a shell on ttyS0.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=linux
/bin/busybox mount -t devtmpfs none /dev
exec </dev/ttyS0 >/dev/ttyS0 2>&1
/bin/busybox --install -s /bin
mkdir -p /dev/pts /proc /sys /tmp /run /root
mount -t devpts none /dev/pts
mount -t proc none /proc
mount -t sysfs none /sys
mount -t tmpfs none /tmp
mkdir -p /dev/shm
mount -t tmpfs none /dev/shm
ln -sf /proc/self/fd /dev/fd
hostname guest

# In the order in which they depend on each other.
while read -r module; do
    insmod "$module" 2>/dev/null
done </etc/modules

# /etc/dhcp.sh reports the lease here; the client stays to renew it.
ip link set lo up
if [ -e /sys/class/net/eth0 ]; then
    udhcpc -i eth0 -s /etc/dhcp.sh -x hostname:guest \
        -O mtu -O staticroutes -O search -t 10 -T 1 -b >/dev/null 2>&1
fi
read -r uptime _ </proc/uptime
echo "guest: up after $uptime s"

# A person's shell, or a program's: with a controlling terminal, so that Ctrl-C works.
while :; do
    cd /root || exit
    setsid -c bash --noediting
done
