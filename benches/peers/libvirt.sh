#!/usr/bin/env bash
# usage: libvirt.sh install          what the comparison needs, from the distribution
#        libvirt.sh client OUT       compiles the client
#        libvirt.sh serve FOLDER     a libvirtd of its own until it is killed
#
# The daemon runs in mount and network namespaces of its own, where libvirt's folders are folders
# of FOLDER: nothing of a libvirt of the host's is read or written, and all of it goes
# with FOLDER. Its socket is FOLDER/run/libvirt-sock.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

case $1 in
install)
  if command -v libvirtd >/dev/null && [ -e /usr/include/libvirt/libvirt.h ] && command -v cc >/dev/null; then
    exit 0
  fi
  echo "installing libvirt (apt)" >&2
  export DEBIAN_FRONTEND=noninteractive
  # Its units shall not start beside what they are compared with.
  apt-get install -qq -y --no-install-recommends \
    gcc libc6-dev libvirt-daemon libvirt-daemon-driver-qemu libvirt-dev >/dev/null
  ;;
client)
  cc -O2 -Wall -pthread -o "$2" "$here/libvirt.c" -lvirt
  ;;
serve)
  folder=$2
  mkdir -p "$folder"/{etc,lib,cache,log,run}
  printf 'user = "root"\ngroup = "root"\nsecurity_driver = "none"\nstdio_handler = "file"\n' >"$folder/etc/qemu.conf"
  printf 'unix_sock_group = "root"\nauth_unix_rw = "none"\nmax_clients = 200\nmax_workers = 64\n' >"$folder/etc/libvirtd.conf"
  # libvirtd wants a user and a group of this name to exist, whatever qemu.conf says.
  { cat /etc/passwd; grep -q ^libvirt-qemu: /etc/passwd || echo "libvirt-qemu:x:0:0::/:/bin/false"; } >"$folder/passwd"
  { cat /etc/group; grep -q ^libvirt-qemu: /etc/group || echo "libvirt-qemu:x:0:"; } >"$folder/group"
  export folder
  exec unshare -m -n bash -euc '
    mount --make-rprivate /
    for pair in etc:/etc/libvirt lib:/var/lib/libvirt cache:/var/cache/libvirt log:/var/log/libvirt run:/run/libvirt; do
      mkdir -p "${pair#*:}"
      mount --bind "$folder/${pair%%:*}" "${pair#*:}"
    done
    mount --bind "$folder/passwd" /etc/passwd
    mount --bind "$folder/group" /etc/group
    exec libvirtd --config /etc/libvirt/libvirtd.conf --pid-file /run/libvirt/libvirtd.pid --timeout 600'
  ;;
*)
  sed -n '2,4s/^# //p' "$0" >&2
  exit 2
  ;;
esac
