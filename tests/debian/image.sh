#!/usr/bin/env bash
# Builds the Debian system that run.sh boots: systemd as PID 1, QEMU, and one service that runs what
# comes on the second disk. It owns the folder given to it; the machine is not changed. Root only.
#
#   image.sh DIR    DIR/root.ext4, DIR/vmlinuz, DIR/initrd; nothing to do where they are
set -euo pipefail
into=${1:?usage: image.sh DIR}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# What the image is made from: another list or another script is another image.
packages=systemd-sysv,dbus,udev,kmod,iproute2,nftables,dnsmasq-base,adduser,curl,jq,procps
packages+=,linux-image-cloud-amd64,initramfs-tools,qemu-system-x86,qemu-utils
stamp=$(sha256sum "$here/image.sh" | cut -d' ' -f1)
if [ "$(cat "$into/stamp" 2>/dev/null)" = "$stamp" ]; then exit 0; fi

mkdir -p "$into"
rm -f "$into/stamp"
root=$(mktemp -d "$into/root.XXXXXX")
trap 'rm -rf --one-file-system "$root"' EXIT
chmod 755 "$root"
# The host's own mirror and keys: whatever this machine installs from.
mmdebstrap --quiet --variant=minbase --include="$packages" --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --aptopt='APT::Install-Recommends "false"' \
    "$(. /etc/os-release && echo "$VERSION_CODENAME")" "$root" >&2

cp "$root"/boot/vmlinuz-* "$into/vmlinuz"
cp "$root"/boot/initrd.img-* "$into/initrd"
# The kernel's image is not needed inside, and a TCG guest reads slowly.
rm -f "$root"/boot/* "$root"/var/cache/apt/archives/*.deb
echo /dev/vda / ext4 rw,noatime 0 1 >"$root/etc/fstab"
echo vman-test >"$root/etc/hostname"
mkdir -p "$root/etc/systemd/journald.conf.d" "$root/var/log/journal"
printf '[Journal]\nStorage=persistent\nRateLimitIntervalSec=0\n' >"$root/etc/systemd/journald.conf.d/test.conf"
# The second disk is a tar archive: no file system, no module, no mount.
cat >"$root/etc/systemd/system/vman-test.service" <<'UNIT'
[Unit]
Description=What the second disk says
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'mkdir -p /opt/test && tar -xf /dev/vdb -C /opt/test && exec /opt/test/inside.sh'
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
TimeoutStartSec=infinity
[Install]
WantedBy=multi-user.target
UNIT
ln -s /etc/systemd/system/vman-test.service "$root/etc/systemd/system/multi-user.target.wants/"
for unneeded in getty.target serial-getty@ttyS0.service apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
    e2scrub_all.timer e2scrub_reap.service fstrim.timer systemd-timesyncd.service; do
    ln -sf /dev/null "$root/etc/systemd/system/$unneeded"
done
mkfs.ext4 -q -F -d "$root" "$into/root.ext4" 3G
echo "$stamp" >"$into/stamp"
