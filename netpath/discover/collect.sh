#!/bin/sh
# Collects what netpath needs to know of a node, without netpath: every network namespace's devices, addresses, routes,
# neighbours, rulesets and sockets as the node's own tools print them, in one tar. Nothing on the node is changed: the tar and a
# folder of its own under TMPDIR (removed at the end) are all that is written, and no packet is sent.
#
#   sh collect.sh > node.tar            sh collect.sh -o node.tar            sh collect.sh -o node.tar.gz
#
# What is in the tar, and what was left out on purpose (the environment of containers, passwords), stands in docs/snapshot.md.
# Needs root, a POSIX shell, nsenter (util-linux or busybox), tar, and iproute2 of 2018 or later (ip -j). What else is missing
# (nft, iptables, ipset, conntrack, ss, ethtool, bpftool, docker, crictl) is noted in the tar and told at the end.

umask 077
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin
LC_ALL=C
export PATH LC_ALL
VERSION=1
CONNTRACK_MAX=100000

say() { printf '%s\n' "netpath collect: $*" >&2; }
die() { code=$1; shift; say "$*"; exit "$code"; }

# A busybox shell may run its own `ip` for that word, which knows no -j: tools are called by their place.
place() {
    (
        IFS=:
        for folder in $PATH; do
            [ -x "$folder/$1" ] && [ ! -d "$folder/$1" ] && { printf '%s\n' "$folder/$1"; exit 0; }
        done
        exit 1
    )
}
have() { place "$1" >/dev/null; }

output=
while getopts o:h option; do
    case $option in
        o) output=$OPTARG ;;
        h) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) die 2 "usage: sh collect.sh [-o FILE.tar|FILE.tar.gz]" ;;
    esac
done
shift $((OPTIND - 1))
[ $# -eq 0 ] || die 2 "usage: sh collect.sh [-o FILE.tar|FILE.tar.gz]"
[ -n "$output" ] || [ ! -t 1 ] || die 2 "a tar is not for a terminal: add -o FILE, or > FILE"
[ "$(id -u)" = 0 ] || die 3 "entering network namespaces needs root: run it with sudo"
for tool in ip nsenter; do
    have "$tool" || die 3 "$tool is missing on this node"
done
ip=$(place ip)
"$ip" -j link show dev lo >/dev/null 2>&1 || die 3 "this node's ip has no -j: iproute2 of 2018 or later is needed"

work=$(mktemp -d) || die 3 "no temporary folder can be made (TMPDIR)"
trap 'rm -rf "$work"' EXIT
trap 'exit 130' HUP INT TERM
host=$(cat /proc/sys/kernel/hostname 2>/dev/null | tr -c 'A-Za-z0-9._\n-' '_')
stem=netpath-${host:-node}
root=$work/$stem
mkdir "$root" "$work/mounts" || exit 3

note() { printf 'note\t%s\n' "$*" >>"$root/collect.tsv"; say "$*"; }

# A command that hangs (a container runtime that does not answer) must not keep the rest.
if have timeout; then bounded() { timeout 20 "$@"; }; else bounded() { "$@"; }; fi

{
    printf 'tool\tcollect.sh %s\n' "$VERSION"
    printf 'hostname\t%s\n' "$host"
    printf 'kernel\t%s\n' "$(uname -r)"
    printf 'taken_at\t%s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)"
    printf 'iproute2\t%s\n' "$("$ip" -V 2>&1)"
} >"$root/collect.tsv"

# --- Which namespaces there are. Lines of $work/found: inode, rank, a path to enter it by, name; the lowest rank names it.

process_namespaces() { # PID INODE
    ls -l /proc/[0-9]*/ns/net 2>/dev/null | sed -n 's|^.* /proc/\([0-9]*\)/ns/net -> net:\[\([0-9]*\)\]$|\1 \2|p'
}
inode_of() { ls -Lid "$1" 2>/dev/null | sed 's/^ *\([0-9]*\) .*/\1/'; }

process_namespaces >"$work/pids"
first=/proc/1/ns/net
[ -n "$(readlink "$first" 2>/dev/null)" ] || first=/proc/self/ns/net
host_inode=$(readlink "$first" | sed 's/.*\[\([0-9]*\)\].*/\1/')
[ "$first" = /proc/1/ns/net ] || first=/proc/$$/ns/net
tab=$(printf '\t')
printf '%s\t3\t%s\thost\n' "$host_inode" "$first" >"$work/found"
for path in /run/netns/* /var/run/netns/* /run/docker/netns/* /var/run/docker/netns/*; do
    [ -e "$path" ] || continue
    case $path in *"$tab"*|*'
'*) note "a file under ${path%/*} has a name with a tab or a line end; left out"; continue ;; esac
    rank=1
    case $path in */docker/netns/*) rank=4 ;; esac
    inode=$(inode_of "$path")
    # A file that nothing is mounted on is what a namespace leaves that was not deleted cleanly.
    if [ -n "$inode" ] && nsenter -n"$path" true 2>/dev/null; then
        printf '%s\t%s\t%s\t%s\n' "$inode" "$rank" "$path" "${path##*/}" >>"$work/found"
    else
        note "$path is not a network namespace (any more); left out"
    fi
done
while read -r pid inode; do
    printf '%s\t5\t/proc/%s/ns/net\tnetns-%s\n' "$inode" "$pid" "$inode"
done <"$work/pids" >>"$work/found"

# Containers: their names, and what docker says of them without their environment.
if have docker && bounded docker ps -q --no-trunc >"$work/containers" 2>"$work/error"; then
    while read -r id; do
        pid=$(bounded docker inspect -f '{{.State.Pid}}' "$id" 2>/dev/null)
        name=$(bounded docker inspect -f '{{.Name}}' "$id" 2>/dev/null)
        inode=$(sed -n "s/^${pid:-none} //p" "$work/pids")
        [ -n "$inode" ] || { note "docker container $id: its process is gone"; continue; }
        printf '%s\t2\t/proc/%s/ns/net\t%s\n' "$inode" "$pid" "${name#/}" >>"$work/found"
        printf '%s\tdocker\t%s\n' "$inode" "$id" >>"$work/workloads"
    done <"$work/containers"
elif have docker; then
    note "docker did not answer: $(head -n 1 "$work/error" | tr '\t' ' ')"
fi
if have crictl && bounded crictl pods -q --no-trunc --state ready >"$work/sandboxes" 2>"$work/error"; then
    while read -r id; do
        pid=$(bounded crictl inspectp -o go-template --template '{{.info.pid}}' "$id" 2>/dev/null)
        inode=$(sed -n "s/^${pid:-none} //p" "$work/pids")
        [ -n "$inode" ] || { note "pod sandbox $id: its process is not to be found"; continue; }
        printf '%s\tcri\t%s\n' "$inode" "$id" >>"$work/workloads"
    done <"$work/sandboxes"
elif have crictl; then
    note "crictl did not answer: $(head -n 1 "$work/error" | tr '\t' ' ')"
fi

# One line per namespace in $work/list: inode, folder, path. Folders have tame names; netns.tsv keeps the file with the real one.
sort -t "$tab" -k 1,1n -k 2,2n "$work/found" >"$work/sorted"
: >"$work/list"
last=
while IFS=$tab read -r inode rank path name; do
    [ "$inode" = "$last" ] && continue
    last=$inode
    folder=$(printf '%s' "$name" | tr -c 'A-Za-z0-9._-' '_' | sed 's/^[.-]/_&/' | cut -c 1-100)
    # A folder beside these is called mounts, another namespace may have been tidied to the same name.
    if [ -z "$folder" ] || [ -e "$root/$folder" ]; then folder=${folder:-netns}-$inode; fi
    mkdir "$root/$folder" || continue
    printf '%s\t%s\t%s\n' "$inode" "$folder" "$path" >>"$work/list"
done <"$work/sorted"

# --- What is read of each namespace.

# Written as one text, so that one shell inside the namespace reads all of /proc/sys/net, which shows the namespace of its reader.
# By grep and not by the shell's read, which takes a byte at a time: these files give a second read nothing.
read_sysctls='
cd /proc/sys/net/ipv4/conf || exit
{
    for key in accept_local arp_announce arp_filter arp_ignore bc_forwarding disable_policy disable_xfrm forwarding \
        ignore_routes_with_linkdown proxy_arp proxy_arp_pvlan route_localnet rp_filter src_valid_mark; do
        grep -sH "" /proc/sys/net/ipv4/conf/*/$key
    done
    for key in accept_ra disable_ipv6 disable_policy force_forwarding forwarding ignore_routes_with_linkdown proxy_ndp \
        seg6_enabled use_oif_addrs_only; do
        grep -sH "" /proc/sys/net/ipv6/conf/*/$key
    done
    cd /proc/sys/net
    grep -sH "" /proc/sys/net/bridge/bridge-nf-*
    for key in ipv4/ip_forward ipv4/ip_default_ttl ipv4/ip_nonlocal_bind ipv4/ip_local_port_range ipv4/ip_no_pmtu_disc \
        ipv4/ip_forward_use_pmtu ipv4/fwmark_reflect ipv4/nexthop_compat_mode ipv4/fib_multipath_hash_policy \
        ipv4/fib_multipath_use_neigh ipv4/icmp_echo_ignore_all ipv4/tcp_l3mdev_accept ipv4/udp_l3mdev_accept \
        ipv4/vs/conntrack ipv6/bindv6only ipv6/fib_multipath_hash_policy ipv6/icmp/echo_ignore_all \
        ipv6/ip_nonlocal_bind ipv6/fwmark_reflect netfilter/nf_conntrack_count netfilter/nf_conntrack_max \
        netfilter/nf_conntrack_tcp_be_liberal netfilter/nf_conntrack_tcp_loose; do
        printf "%s\n" "/proc/sys/net/$key"
    done | xargs grep -sH ""
} | sed "s,^/proc/sys/,,;h;s/:.*//;y,./,/.,;G;s/\n[^:]*:/ = /"
'

inside() { nsenter -n"$path" "$@"; }
run() { # TOOL ARGUMENTS...: a tool of the node, inside
    tool_place=$(place "$1") || return 127
    shift
    inside "$tool_place" "$@"
}

# take FILE COMMAND...: the output of a command in the namespace; a command that fails leaves no file, so that "unknown" stays apart
# from "nothing there".
take() {
    file=$root/$folder/$1
    shift
    if ! run "$@" >"$file" 2>"$work/error"; then
        rm -f "$file"
        note "$folder: $1 $2 failed: $(head -n 1 "$work/error" | tr '\t' ' ')"
        return 1
    fi
}

# try FILE COMMAND...: the same for what older tools or kernels lack, without a note.
try() {
    file=$root/$folder/$1
    shift
    run "$@" >"$file" 2>/dev/null || { rm -f "$file"; return 1; }
}

# xtables FILE FAMILY BACKEND
xtables() {
    names=/proc/self/net/ip_tables_names
    tool=iptables
    [ "$2" = 4 ] || { names=/proc/self/net/ip6_tables_names; tool=ip6tables; }
    if [ "$3" = legacy ]; then
        # Legacy tables exist only where they are listed here; asking for others would make them.
        if [ -z "$(inside cat "$names" 2>/dev/null)" ]; then : >"$root/$folder/$1"
        elif have "$tool-legacy-save"; then take "$1" "$tool-legacy-save" -c
        elif have "$tool-save" && ! "$(place "$tool-save")" -V 2>/dev/null | grep -q nf_tables; then take "$1" "$tool-save" -c
        else note "$folder: there are legacy $tool tables but no $tool-legacy-save to read them"; fi
    elif have "$tool-nft-save"; then take "$1" "$tool-nft-save" -c
    elif have "$tool-save" && "$(place "$tool-save")" -V 2>/dev/null | grep -q nf_tables; then take "$1" "$tool-save" -c
    elif [ -s "$root/$folder/nft.json" ] && ! grep -q '"xt"' "$root/$folder/nft.json"; then : >"$root/$folder/$1"
    fi
    [ "$2" = 4 ] || [ -s "$root/$folder/$1" ] || rm -f "$root/$folder/$1"
}

collect_namespace() {
    take link.json ip -d -j link show || return 1
    take addr.json ip -j addr show
    take route.json ip -4 -d -j route show table all
    if [ -d /proc/sys/net/ipv6 ]; then
        take route6.json ip -6 -d -j route show table all
        try rule6.json ip -6 -j rule show
    else
        : >"$root/$folder/route6.json"
        : >"$root/$folder/rule6.json"
    fi
    take rule.json ip -4 -j rule show
    try nexthop.json ip -d -j nexthop show
    take neigh.json ip -j neigh show nud all
    try neigh-proxy.json ip -j neigh show proxy
    if have bridge; then
        take fdb.json bridge -d -j fdb show
        try vlan.json bridge -j vlan show
    fi
    try xfrm.txt ip xfrm policy
    if have nft; then take nft.json nft -j list ruleset; fi
    xtables iptables-nft.save 4 nft
    xtables iptables-legacy.save 4 legacy
    xtables ip6tables-nft.save 6 nft
    xtables ip6tables-legacy.save 6 legacy
    if have ipset; then try ipset.save ipset save; fi
    # Without conntrack's sysctls the module is not loaded and there is nothing to list.
    if ! inside test -e /proc/sys/net/netfilter/nf_conntrack_count; then
        : >"$root/$folder/conntrack.txt"
    elif have conntrack && run conntrack -L -o extended >"$work/conntrack" 2>/dev/null; then
        head -n "$CONNTRACK_MAX" "$work/conntrack" >"$root/$folder/conntrack.txt"
    elif inside test -r /proc/self/net/nf_conntrack; then
        inside head -n "$CONNTRACK_MAX" /proc/self/net/nf_conntrack >"$root/$folder/conntrack.txt"
    else
        rm -f "$root/$folder/conntrack.txt"
    fi
    if [ -f "$root/$folder/conntrack.txt" ] && [ "$(wc -l <"$root/$folder/conntrack.txt")" -ge "$CONNTRACK_MAX" ]; then
        note "$folder: conntrack.txt holds the first $CONNTRACK_MAX entries"
    fi
    inside sh -c "$read_sysctls" >"$root/$folder/sysctl.txt" 2>/dev/null
    if have ss; then
        take ss.txt ss -H -l -n -p -t -u && run ss -H -n -p -u state established 2>/dev/null |
            sed 's/^\(udp \)\{0,1\} *\([0-9]\)/udp ESTAB \2/' >>"$root/$folder/ss.txt"
    fi
    if have ethtool; then
        for device in $(sed 's/"ifname"/\n&/g' "$root/$folder/link.json" | sed -n 's/^"ifname": *"\([^"]*\)".*/\1/p'); do
            run ethtool -k "$device" 2>/dev/null | sed -n '1p;/^tx-checksumming/p'
        done >"$root/$folder/ethtool.txt"
    fi
    if have bpftool; then try bpf.json bpftool -j net show; fi
    printf '%s\n' "$inode" >"$root/$folder/inode.txt"
    sed -n "s/^\([0-9]*\) $inode\$/\1/p" "$work/pids" >"$root/$folder/pids.txt"
    for pid in $(cat "$root/$folder/pids.txt"); do
        read -r comm 2>/dev/null <"/proc/$pid/comm" || continue
        [ "$comm" = docker-proxy ] && { tr '\0' ' ' <"/proc/$pid/cmdline"; echo; } >>"$root/$folder/docker-proxy.txt"
    done
    return 0
}

for tool in bridge nft ipset conntrack ss; do
    have "$tool" || note "$tool is missing on this node"
done
have iptables-save || have iptables-nft-save || have iptables-legacy-save || note "iptables-save is missing on this node"

count=0
kept=0
total=$(wc -l <"$work/list")
printf 'name\tinode\tfile\n' >"$root/netns.tsv"
while IFS=$tab read -r inode folder path; do
    count=$((count + 1))
    [ $((count % 20)) != 0 ] || say "$count of $((total)) namespaces"
    # Nothing in here may read the list itself.
    if collect_namespace </dev/null; then
        kept=$((kept + 1))
        printf '%s\t%s\t%s\n' "$folder" "$inode" "$path" >>"$root/netns.tsv"
    else
        rm -rf "${root:?}/$folder"
    fi
done <"$work/list"

# --- How the namespaces number each other (a veth names its peer's namespace by such a number). `ip netns list-id` gives names only to
# what lies in /run/netns, so it is run where all of them do: in a mount namespace of its own, which ends with it.

list_ids='
mount --make-rprivate / && mount -t tmpfs none "$1/mounts" || exit 1
tab=$(printf "\t")
while IFS=$tab read -r inode folder path; do
    : >"$1/mounts/$folder" && mount --bind "$path" "$1/mounts/$folder" 2>/dev/null || rm -f "$1/mounts/$folder"
done <"$1/list"
if [ ! -d /run/netns ]; then mount -t tmpfs none /run && mkdir /run/netns || exit 1; fi
mount --rbind "$1/mounts" /run/netns || exit 1
while IFS=$tab read -r inode folder path; do
    [ -d "$2/$folder" ] && [ -e "$1/mounts/$folder" ] || continue
    nsenter -n"$1/mounts/$folder" "$3" netns list-id >"$2/$folder/nsid.txt" 2>/dev/null </dev/null
done <"$1/list"
'
: >"$work/error"
if ! have unshare || ! unshare -m sh -c "$list_ids" sh "$work" "$root" "$ip" 2>"$work/error"; then
    note "namespaces beyond /run/netns are told apart by their numbers alone: $(head -n 1 "$work/error" | tr '\t' ' ' | grep . || echo "unshare is missing")"
    while IFS=$tab read -r inode folder path; do
        [ -d "$root/$folder" ] && run ip netns list-id >"$root/$folder/nsid.txt" 2>/dev/null </dev/null
    done <"$work/list"
fi

# --- What belongs to the node as a whole. Secrets are blanked.

hide() { sed 's/\("[^"]*\([Tt][Oo][Kk][Ee][Nn]\|[Pp][Aa][Ss][Ss][Ww]\|[Ss][Ee][Cc][Rr][Ee][Tt]\)[^"]*"[ ]*:[ ]*\)"[^"]*"/\1"hidden"/g'; }

hosts=$(sed -n "s/^$host_inode$tab\([^$tab]*\)$tab.*/\1/p" "$work/list")
home=$root/${hosts:-.}
[ ! -f /run/flannel/subnet.env ] || cp /run/flannel/subnet.env "$home/subnet.env"
for file in /etc/cni/net.d/*.conf /etc/cni/net.d/*.conflist /etc/docker/daemon.json; do
    [ -f "$file" ] && hide <"$file" >"$home/${file##*/}"
done
cat /etc/iproute2/rt_tables /etc/iproute2/rt_tables.d/*.conf /usr/share/iproute2/rt_tables 2>/dev/null >"$root/rt_tables"
if have docker && [ -s "$work/containers" ]; then
    for network in $(bounded docker network ls --format '{{.Name}}' 2>/dev/null); do
        case $network in *[!A-Za-z0-9._-]*) continue ;; esac
        bounded docker network inspect "$network" >"$home/docker-network-$network.json" 2>/dev/null || rm -f "$home/docker-network-$network.json"
    done
fi
if [ -s "$work/workloads" ]; then
    while IFS=$tab read -r inode runtime id; do
        folder=$(sed -n "s/^$inode$tab\([^$tab]*\)$tab.*/\1/p" "$work/list")
        [ -d "$root/$folder" ] || continue
        if [ "$runtime" = docker ]; then
            file=$root/$folder/docker-inspect.json
            text=$(bounded docker inspect -f '{"Id":{{json .Id}},"Name":{{json .Name}},"State":{"Pid":{{json .State.Pid}}},"HostConfig":{"NetworkMode":{{json .HostConfig.NetworkMode}},"PortBindings":{{json .HostConfig.PortBindings}}},"NetworkSettings":{{json .NetworkSettings}}}' "$id" 2>/dev/null </dev/null)
        else
            file=$root/$folder/crictl-inspectp.json
            text=$(bounded crictl inspectp -o go-template --template '{"status":{"id":"{{.status.id}}","metadata":{"name":"{{.status.metadata.name}}","namespace":"{{.status.metadata.namespace}}"}},"info":{"pid":{{.info.pid}}}}' "$id" 2>/dev/null </dev/null)
        fi
        [ -n "$text" ] || continue
        if [ -s "$file" ]; then printf ',%s\n' "$text" >>"$file"; else printf '[%s\n' "$text" >"$file"; fi
    done <"$work/workloads"
    for file in "$root"/*/docker-inspect.json "$root"/*/crictl-inspectp.json; do
        [ -f "$file" ] && printf ']\n' >>"$file"
    done
fi

# --- The tar.

chmod -R a+rX "$root"
case $output in
    '') tar -C "$work" -cf - "$stem" ;;
    *.gz|*.tgz) tar -C "$work" -cf - "$stem" | gzip >"$output" ;;
    *) tar -C "$work" -cf "$output" "$stem" ;;
esac || die 3 "the tar could not be written"
say "$kept namespaces${output:+ in $output}"
