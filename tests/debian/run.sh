#!/usr/bin/env bash
# VMAN's package on a real Debian: builds two packages and a Debian system, boots it in QEMU with systemd as PID 1 and
# has inside.sh try, in it, all that an operator does. Part of `make test-long`; root, about 1 GB and some minutes.
#
#   run.sh            all of it
#   VMAN_DEBIAN_CACHE where image and packages are kept (a folder beside the build by default)
#   VMAN_DEBIAN_ACCEL the accelerator of the outer machine (tcg)
#   VMAN_DEBIAN_DEBS  a folder with vman-old.deb and vman-new.deb, instead of building them
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../.."
PATH=$PATH:/usr/sbin:/sbin:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin
target=${CARGO_TARGET_DIR:-target}
cache=${VMAN_DEBIAN_CACHE:-$target/debian-vm}
# Of one boot. The first takes two or three minutes on four free cores.
deadline=1500

skip() {
    echo "SKIPPED debian: $1" >&2
    [ -z "${VMAN_TEST_SKIPS:-}" ] || echo "debian: $1" >>"$VMAN_TEST_SKIPS"
    exit 0
}
[ "$(id -u)" = 0 ] || skip "building the image needs root"
for tool in mmdebstrap mkfs.ext4 qemu-system-x86_64 qemu-img; do
    command -v "$tool" >/dev/null || skip "$tool is not installed"
done

mkdir -p "$cache"
debs=${VMAN_DEBIAN_DEBS:-$cache/debs}
if [ -z "${VMAN_DEBIAN_DEBS:-}" ]; then
    # The same program twice: what is tried is how a package takes the place of another.
    contrib/debian/build.sh --deb-revision 1
    mkdir -p "$debs"
    mv "$target"/debian/vman_*-1_*.deb "$debs/vman-old.deb"
    contrib/debian/build.sh --deb-revision 2
    mv "$target"/debian/vman_*-2_*.deb "$debs/vman-new.deb"
fi
"$here/image.sh" "$cache"
contrib/guest/build.sh
guest=$(contrib/guest/build.sh --print)

work=$(mktemp -d "$cache/run.XXXXXX")
qemu=
finish() {
    [ -z "$qemu" ] || kill "$qemu" 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT
mkdir "$work/disk" "$work/disk/guest"
cp "$here/inside.sh" "$debs/vman-old.deb" "$debs/vman-new.deb" "$work/disk"
cp "$guest/vmlinuz" "$guest/initrd" "$work/disk/guest"
tar -C "$work/disk" -cf "$work/disk.tar" .
qemu-img create -q -f qcow2 -F raw -b "$(realpath "$cache/root.ext4")" "$work/root.qcow2"

. "$here/boot.sh"

# boot NUMBER: one that comes to its end.
boot() {
    local log=$cache/boot-$1.log
    debian_boot "debian: boot $1" "$log"
    grep -q "^@@ end of boot $1" "$log" || {
        echo "debian: boot $1 did not come to its end; its console is in $log" >&2
        exit 1
    }
}
boot 1
boot 2
passed=$(cat "$cache"/boot-[12].log | grep -c '^@@ ok') || true
failed=$(cat "$cache"/boot-[12].log | grep -c '^@@ FAIL') || true
echo "debian: $passed passed, $failed failed, $SECONDS s"
[ "$failed" = 0 ]
