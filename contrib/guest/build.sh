#!/usr/bin/env bash
# Builds the guest that people and tests boot: a Debian kernel and a small initramfs, and with
# --disk an image that boots them by BIOS and by UEFI.
#
# It owns the cache directory and nothing else: packages are downloaded and unpacked there, never
# installed, so it needs neither root nor a change to the machine. What the guest does is in
# init and the scripts beside this file; what it says is in README.md.
set -euo pipefail

usage() {
    cat <<END
usage: build.sh [--disk] [--force] [--print]
  (nothing)  build vmlinuz and initrd if they are missing or out of date
  --disk     also disk.raw and disk.qcow2, which boot the same by BIOS and by UEFI
  --force    build even if the cache is up to date
  --print    print the cache directory and stop
The cache is contrib/guest/out, or \$VMAN_GUEST_CACHE.
END
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${VMAN_GUEST_CACHE:-$here/out}
want_disk=0 force=0
for arg in "$@"; do
    case $arg in
    --disk) want_disk=1 ;;
    --force) force=1 ;;
    --print) echo "$cache" && exit 0 ;;
    -h | --help) usage && exit 0 ;;
    *) usage >&2 && exit 2 ;;
    esac
done

say() { echo "guest: $*" >&2; }
die() {
    echo "guest: error: $1" >&2
    shift
    printf '  %s\n' "$@" >&2
    exit 1
}

# Of each: what is loaded when the guest starts. build.sh adds what they depend on, in order.
# pvpanic tells QEMU of a guest's panic where the machine has that device.
modules=(virtio_pci virtio_blk virtio_net virtio_balloon virtio-rng pvpanic-pci pvpanic-mmio button evdev)
kernel_cmdline='console=ttyS0 quiet'

# --- packages -------------------------------------------------------------------------------

apt_options=(-q -o APT::Sandbox::User=root)

# Where this user may not fill apt's own lists and they are empty, lists of our own do.
use_private_lists() {
    local dir=$cache/apt
    mkdir -p "$dir/lists/partial" "$dir/archives/partial"
    apt_options=(-q -o "Dir::State::Lists=$dir/lists" -o "Dir::Cache=$dir")
    [ "$(id -u)" = 0 ] && apt_options+=(-o APT::Sandbox::User=root)
    return 0
}

# The name of the kernel package that Debian's meta package stands for today.
newest_kernel() {
    apt-cache "${apt_options[@]}" depends linux-image-cloud-amd64 2>/dev/null |
        awk '$1 == "Depends:" && $2 ~ /^linux-image-[0-9]/ && !found++ { print $2 }' || true
}

candidate() {
    apt-cache "${apt_options[@]}" policy "$1" 2>/dev/null |
        awk '$1 == "Candidate:" && $2 != "(none)" { print $2 }' || true
}

refresh_lists() {
    say "fetching the package lists (apt-get update)"
    use_private_lists
    apt-get "${apt_options[@]}" update >"$cache/apt/update.log" 2>&1 || return 1
}

# fetch DIR PACKAGE...: unpacks the packages below DIR.
fetch() {
    local into=$1 debs
    shift
    mkdir -p "$into.debs" "$into"
    if ! (cd "$into.debs" && apt-get "${apt_options[@]}" download "$@" >log 2>&1); then
        # Lists that are older than the mirror name versions that are gone.
        refresh_lists && (cd "$into.debs" && apt-get "${apt_options[@]}" download "$@" >log 2>&1) || {
            sed 's/^/  apt: /' "$into.debs/log" >&2
            return 1
        }
    fi
    debs=("$into.debs"/*.deb)
    for deb in "${debs[@]}"; do dpkg-deb -x "$deb" "$into" || return 1; done
    rm -rf "$into.debs"
}

# --- is there anything to do? ---------------------------------------------------------------

# The versions that a build would use now; empty where apt knows none. Asking takes a second, so
# it is asked only when apt's lists are newer than the stamp.
versions_now() {
    command -v apt-cache >/dev/null || return 0
    local kernel
    [ ! -f "$cache/stamp" ] ||
        [ -n "$(find /var/lib/apt/lists -maxdepth 1 -newer "$cache/stamp" -print -quit 2>/dev/null)" ] || return 0
    kernel=$(newest_kernel)
    [ -n "$kernel" ] && echo "$kernel=$(candidate "$kernel") busybox-static=$(candidate busybox-static)"
    return 0
}

# What these files are. The cache holds this in its stamp beside the versions.
sources_hash() {
    (cd "$here" && cat build.sh init devices address counter && echo "$kernel_cmdline") | sha256sum | cut -c1-16
}

# up_to_date VERSIONS FILE...: unknown versions (no package lists) do not make a cache stale.
up_to_date() {
    local stamp sources versions
    [ -f "$cache/stamp" ] && read -r sources stamp <"$cache/stamp" || return 1
    versions=$1
    shift
    [ "$sources" = "$(sources_hash)" ] || return 1
    [ -z "$versions" ] || [ "$versions" = "$stamp" ] || return 1
    for file in "$@"; do [ -s "$cache/$file" ] || return 1; done
}

# --- kernel and initramfs -------------------------------------------------------------------

# Sets kernel_image, modules_dir and busybox: from packages, else from what is installed. Fails
# where neither is to be had.
find_parts() {
    local tree=$1/packages kernel
    kernel_image='' modules_dir='' busybox=''
    kernel=$(newest_kernel)
    if [ -z "$kernel" ] && command -v apt-get >/dev/null && refresh_lists; then kernel=$(newest_kernel); fi
    if [ -n "$kernel" ] && say "downloading $kernel and busybox-static" && fetch "$tree" "$kernel" busybox-static; then
        kernel_image=$(echo "$tree"/boot/vmlinuz-*)
        modules_dir=$(echo "$tree"/lib/modules/*)
        [ -d "$modules_dir" ] || modules_dir=$(echo "$tree"/usr/lib/modules/*)
        busybox=$tree/bin/busybox
        [ -x "$busybox" ] || busybox=$tree/usr/bin/busybox
        built_from="$kernel=$(candidate "$kernel") busybox-static=$(candidate busybox-static)"
        return 0
    fi
    find_installed_parts
}

find_installed_parts() {
    local image version
    busybox=$(command -v busybox || true)
    while read -r image; do
        version=${image#/boot/vmlinuz-}
        if [ -r "$image" ] && [ -d "/lib/modules/$version" ]; then
            kernel_image=$image modules_dir=/lib/modules/$version
        fi
    done < <(find /boot -maxdepth 1 -name 'vmlinuz-*' 2>/dev/null | sort -V)
    [ -n "$kernel_image" ] && [ -n "$busybox" ] || return 1
    if ldd "$busybox" >/dev/null 2>&1; then
        say "the installed $busybox is not a static one (package busybox-static)"
        return 1
    fi
    say "packages cannot be downloaded: using the installed $kernel_image and $busybox"
    built_from="installed $(basename "$kernel_image")"
}

# Where nothing can be built: what the cache has, or else a word on what to do.
keep_old_or_die() {
    if [ -s "$cache/vmlinuz" ] && [ -s "$cache/initrd" ]; then
        say "warning: the packages cannot be downloaded; going on with the older guest in $cache"
        return 0
    fi
    die "no kernel and busybox for the guest: the packages cannot be downloaded and none are installed" \
        "online, on Debian:  sudo apt-get update && $0" \
        "or install them:    sudo apt-get install linux-image-cloud-amd64 busybox-static" \
        "or bring a built guest (vmlinuz, initrd) into $cache"
}

# A module says what it needs in a section of NUL-ended words; modinfo may not be installed.
depends_of() {
    LC_ALL=C tr '\0' '\n' <"$1" | LC_ALL=C sed -n 's/^depends=//p' | tr ',' ' '
}

# add_module NAME: copies the module with all it depends on and appends them to the order.
add_module() {
    local name=${1//-/_} file base dep
    grep -qxF "$name.ko" "$root/modules/order" 2>/dev/null && return 0
    # Both spellings: the file may have dashes where the kernel's name has underscores.
    file=$(find "$modules_dir/" \( -name "$name.ko*" -o -name "${name//_/-}.ko*" \) -print -quit)
    # Not there: built in, which is as good.
    [ -n "$file" ] || return 0
    base=$root/modules/$name.ko
    case $file in
    *.xz) xz -dc "$file" >"$base" ;;
    *.zst) zstd -qdc "$file" >"$base" ;;
    *.gz) gzip -dc "$file" >"$base" ;;
    *) cp "$file" "$base" ;;
    esac || die "cannot unpack $file" "sudo apt-get install xz-utils zstd"
    for dep in $(depends_of "$base"); do add_module "$dep"; done
    echo "$name.ko" >>"$root/modules/order"
}

# A cpio archive of the directory $1 on standard output. All files belong to root in the guest, and
# the same files make the same archive (with GNU cpio; busybox's numbers inodes as they come).
archive() {
    find "$1" -exec touch -h -d @0 {} +
    if command -v cpio >/dev/null; then
        (cd "$1" && find . -mindepth 1 | LC_ALL=C sort | cpio --quiet --reproducible -o -H newc -R 0:0)
    else
        # Busybox has a cpio of its own, which knows owners as well.
        (cd "$1" && find . -mindepth 1 | LC_ALL=C sort | "$busybox" cpio -o -H newc -R 0:0 2>/dev/null)
    fi
}

build_initrd() {
    root=$1/root
    mkdir -p "$root"/{bin,sbin,etc,modules,proc,sys,dev,run,tmp}
    install -m 755 "$busybox" "$root/bin/busybox"
    install -m 755 "$here/init" "$root/init"
    install -m 755 "$here/devices" "$here/address" "$here/counter" "$root/bin/"
    ln -s busybox "$root/bin/sh"
    for module in "${modules[@]}"; do add_module "$module"; done
    for needed in virtio_blk virtio_net; do
        [ -s "$root/modules/$needed.ko" ] || say "note: no module $needed in $modules_dir, taken as built in"
    done
    # Not compressed: unpacking costs the guest more than reading three megabytes does.
    archive "$root" >"$1/initrd"
    [ -s "$1/initrd" ] || die "the initramfs came out empty"
}

# --- the disk image -------------------------------------------------------------------------

little_endian() {
    printf '%b' "$(printf '\\x%02x\\x%02x\\x%02x\\x%02x' $(($1 & 255)) $(($1 >> 8 & 255)) $(($1 >> 16 & 255)) $(($1 >> 24)))"
}

# One FAT partition with the kernel, the initramfs, syslinux (BIOS) and systemd-boot (UEFI).
# Made with mtools, so neither root nor a loop device is needed.
build_disk() {
    local work=$1 tools=$1/tools image=$1/disk.raw start=2048 sectors=129024
    say "downloading syslinux, mtools and systemd-boot for the disk image"
    fetch "$tools" syslinux syslinux-common mtools systemd-boot-efi ||
        die "the boot loaders for the disk image cannot be downloaded" "go online and run $0 --disk again"
    local path=$tools/usr/bin:$PATH part=$image@@1M
    truncate -s $(((start + sectors) * 512)) "$image"
    # The partition table: code of 440 bytes, then one active entry of type FAT32 (LBA).
    {
        head -c 440 "$tools/usr/lib/syslinux/mbr/mbr.bin"
        head -c $((440 - $(head -c 440 "$tools/usr/lib/syslinux/mbr/mbr.bin" | wc -c))) /dev/zero
        printf 'VMAN\0\0'
        printf '\x80\xfe\xff\xff\x0c\xfe\xff\xff'
        little_endian $start
        little_endian $sectors
        head -c 48 /dev/zero
        printf '\x55\xaa'
    } | dd of="$image" conv=notrunc status=none
    export MTOOLS_SKIP_CHECK=1
    PATH=$path mformat -i "$part" -F -h 64 -s 32 -H $start -T $sectors -v VMAN ::
    mkdir -p "$work/boot"
    printf 'DEFAULT vman\nPROMPT 0\nTIMEOUT 0\nLABEL vman\n KERNEL /vmlinuz\n INITRD /initrd\n APPEND %s\n' \
        "$kernel_cmdline" >"$work/boot/syslinux.cfg"
    printf 'timeout 0\ndefault vman.conf\n' >"$work/boot/loader.conf"
    printf 'title vman\nlinux /vmlinuz\ninitrd /initrd\noptions %s\n' "$kernel_cmdline" >"$work/boot/vman.conf"
    PATH=$path mmd -i "$part" ::/EFI ::/EFI/BOOT ::/loader ::/loader/entries
    PATH=$path mcopy -i "$part" "$2/vmlinuz" "$2/initrd" "$work/boot/syslinux.cfg" ::/
    PATH=$path mcopy -i "$part" "$tools/usr/lib/systemd/boot/efi/systemd-bootx64.efi" ::/EFI/BOOT/BOOTX64.EFI
    PATH=$path mcopy -i "$part" "$work/boot/loader.conf" ::/loader/
    PATH=$path mcopy -i "$part" "$work/boot/vman.conf" ::/loader/entries/
    PATH=$path "$tools/usr/bin/syslinux" --install --offset $((start * 512)) "$image"
    if command -v qemu-img >/dev/null; then
        qemu-img convert -q -f raw -O qcow2 "$image" "$work/disk.qcow2"
    else
        say "note: no qemu-img (package qemu-utils), so disk.qcow2 is not made"
    fi
}

# --- main -----------------------------------------------------------------------------------

[ "$(uname -m)" = x86_64 ] || die "the guest is built for x86_64 only, this is $(uname -m)"
mkdir -p "$cache"
wanted=(vmlinuz initrd)
[ "$want_disk" = 1 ] && wanted+=(disk.raw)

exec 9>"$cache/lock"
if ! flock -n 9; then
    say "another build is under way in $cache, waiting for it"
    flock 9
fi

versions=$(versions_now)
if [ "$force" = 0 ] && up_to_date "$versions" "${wanted[@]}"; then
    touch "$cache/stamp"
    say "up to date in $cache"
    exit 0
fi

# What a build that was killed left; the lock says that it is nobody's now.
rm -rf "$cache"/build.*
# On the same file system as the cache, so that the last step is a rename.
work=$(mktemp -d "$cache/build.XXXXXX")
trap 'rm -rf "$work"' EXIT

built_from=''
if [ "$force" = 1 ] || ! up_to_date "$versions" vmlinuz initrd; then
    if find_parts "$work"; then
        build_initrd "$work"
        cp "$kernel_image" "$work/vmlinuz"
        chmod 644 "$work/vmlinuz" "$work/initrd"
        # Without a stamp the cache is incomplete: it goes first and comes last.
        rm -f "$cache/stamp" "$cache"/disk.*
        mv -f "$work/vmlinuz" "$work/initrd" "$cache/"
        echo "$(sources_hash) $built_from" >"$cache/stamp.new"
        mv -f "$cache/stamp.new" "$cache/stamp"
        say "built vmlinuz and initrd in $cache from $built_from"
    else
        keep_old_or_die
    fi
fi
if [ "$want_disk" = 1 ]; then
    build_disk "$work" "$cache"
    for file in disk.qcow2 disk.raw; do
        [ -f "$work/$file" ] && mv -f "$work/$file" "$cache/"
    done
    say "built the disk image in $cache"
fi
exit 0
