#!/usr/bin/env bash
# The tests of networks that need what this host's kernel may lack (802.1Q on bridges, vhost), on the kernel of the
# Debian that run.sh boots: the test program of `tests/net` runs in it, with guests of its own. Root, some minutes.
#
#   net.sh [FILTER...]   the tests whose names contain one of the words (vlan, vhost, limits_are_there)
#   VMAN_DEBIAN_CACHE    where the image is kept (a folder beside the build by default)
#   VMAN_DEBIAN_ACCEL    the accelerator of the outer machine (tcg)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../.."
PATH=$PATH:/usr/sbin:/sbin:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin
target=${CARGO_TARGET_DIR:-target}
cache=${VMAN_DEBIAN_CACHE:-$target/debian-vm}
filters=${*:-vlan vhost limits_are_there}
deadline=1800

skip() {
    echo "SKIPPED debian/net: $1" >&2
    [ -z "${VMAN_TEST_SKIPS:-}" ] || echo "debian/net: $1" >>"$VMAN_TEST_SKIPS"
    exit 0
}
[ "$(id -u)" = 0 ] || skip "building the image needs root"
for tool in mmdebstrap mkfs.ext4 qemu-system-x86_64 qemu-img; do
    command -v "$tool" >/dev/null || skip "$tool is not installed"
done

mkdir -p "$cache"
"$here/image.sh" "$cache"
contrib/guest/build.sh
guest=$(contrib/guest/build.sh --print)
# The test program knows the daemon by the path at which Cargo has built it.
test=$(cargo test --no-run --test net 2>&1 | sed -n 's/.*Executable.*(\(.*\))$/\1/p')
vman=$(realpath -s "$target/debug/vman")

work=$(mktemp -d "$cache/net.XXXXXX")
qemu=
finish() {
    [ -z "$qemu" ] || kill "$qemu" 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT
mkdir -p "$work/disk/guest" "$work/disk/root$(dirname "$vman")"
cp "$guest/vmlinuz" "$guest/initrd" "$work/disk/guest"
cp "$test" "$work/disk/net"
cp "$vman" "$work/disk/root$vman"
strip "$work/disk/net" "$work/disk/root$vman" 2>/dev/null || true
cat >"$work/disk/inside.sh" <<INSIDE
#!/bin/bash
cd "\$(dirname "\$0")" || exit 1
export PATH=/usr/sbin:/usr/bin:/sbin:/bin VMAN_GUEST_CACHE=\$PWD/guest VMAN_TEST_SKIPS=/tmp/skips VMAN_TEST_SLOWNESS=10
cp -a root/. /
modprobe -a vhost_net tun bridge 8021q veth
echo "@@ kernel \$(uname -r)"
# What is for kernels without 802.1Q is left out.
./net --test-threads 1 --nocapture --skip an_uplink_is_not_attached $filters 2>&1 |
    tee /tmp/said | grep --line-buffered -E '^test |^running|KiB/s|panicked|SKIPPED' | sed -u 's/^/@@ /'
code=\${PIPESTATUS[0]}
[ "\$code" = 0 ] || grep -v -E ' (DEBUG|INFO) ' /tmp/said | tail -60 | sed 's/^/@@    /'
echo "@@ end \$code \$(cat /tmp/skips 2>/dev/null | wc -l) skipped"
systemctl poweroff
INSIDE
chmod +x "$work/disk/inside.sh"
tar -C "$work/disk" -cf "$work/disk.tar" .
qemu-img create -q -f qcow2 -F raw -b "$(realpath "$cache/root.ext4")" "$work/root.qcow2"

. "$here/boot.sh"
log=$cache/net.log
debian_boot debian/net "$log"
grep -q '^@@ end 0 0 skipped' "$log" || {
    echo "debian/net: not all passed; its console is in $log" >&2
    exit 1
}
