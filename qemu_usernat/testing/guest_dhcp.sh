#!/bin/busybox sh
# udhcpc calls this on every turn of a lease; its variables are the options of the server's ACK.
# shellcheck disable=SC2154  # set by udhcpc
case "$1" in
deconfig)
    ip link set "$interface" up
    ip addr flush dev "$interface"
    ;;
bound | renew)
    [ -n "$mtu" ] && ip link set "$interface" mtu "$mtu"
    ip addr flush dev "$interface"
    ip addr add "$ip/$mask" dev "$interface"
    # Classless routes (option 121) replace the routers of option 3: RFC 3442.
    if [ -n "$staticroutes" ]; then
        set -- $staticroutes
        while [ $# -ge 2 ]; do
            if [ "$2" = 0.0.0.0 ]; then
                ip route replace "$1" dev "$interface"
            else
                ip route replace "$1" via "$2" dev "$interface"
            fi
            shift 2
        done
    else
        for address in $router; do
            ip route replace default via "$address" dev "$interface"
            break
        done
    fi
    {
        [ -n "${search:-$domain}" ] && echo "search ${search:-$domain}"
        for address in $dns; do echo "nameserver $address"; done
    } >/etc/resolv.conf
    env | grep -E '^(interface|ip|mask|router|dns|domain|mtu|lease|serverid|staticroutes)=' >/run/lease
    ;;
esac
