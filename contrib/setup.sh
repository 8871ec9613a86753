#!/usr/bin/env bash
# Makes sure that what VMAN needs on this machine is there. Says what it installs, does nothing
# and takes no time where nothing is missing.
#
#   contrib/setup.sh run    to build and run VMAN
#   contrib/setup.sh test   to test it as well
#
# Packages come from apt-get: as root, or by sudo where it asks no password. Rust is not installed
# from here: that is for the person to decide.
set -euo pipefail

purpose=${1:-test}
PATH=$PATH:/usr/sbin:/sbin:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin
say() { echo "setup: $*" >&2; }

# --- Debian's packages ----------------------------------------------------------------------

missing=() needed=() wanted=()

# require PACKAGE COMMAND: without it nothing works. want: without it something is left out.
require() { command -v "$2" >/dev/null || { missing+=("$1") && needed+=("$1 ($2)"); }; }
want() { command -v "$2" >/dev/null || { missing+=("$1") && wanted+=("$1 ($2)"); }; }

require build-essential cc
require qemu-system-x86 qemu-system-x86_64
require qemu-utils qemu-img
require curl curl
require jq jq
require xz-utils xz
want cpio cpio
[ -e /etc/ssl/certs/ca-certificates.crt ] || { missing+=(ca-certificates) && wanted+=(ca-certificates); }
[ -e /usr/share/OVMF/OVMF_CODE_4M.fd ] || { missing+=(ovmf) && wanted+=("ovmf (UEFI guests)"); }
if [ "$purpose" = test ]; then
    want strace strace
    want iproute2 ip
    want nftables nft
    want dnsmasq-base dnsmasq
fi

install_packages() {
    local as_root=()
    if [ "$(id -u)" != 0 ]; then
        sudo -n true 2>/dev/null || return 1
        as_root=(sudo -n)
    fi
    command -v apt-get >/dev/null || return 1
    say "missing: ${missing[*]}"
    say "installing them: ${as_root[*]:+${as_root[*]} }apt-get install --no-install-recommends ${missing[*]}"
    # Lists may be absent or too old; a failure to refresh shows itself in the next step.
    "${as_root[@]}" apt-get -q update >/dev/null || say "apt-get update failed, trying on"
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 \
        install -y --no-install-recommends "${missing[@]}" </dev/null >/dev/null
}

if [ ${#missing[@]} -gt 0 ] && ! install_packages; then
    say "cannot install what is missing here; please run:"
    say "    sudo apt-get update && sudo apt-get install --no-install-recommends ${missing[*]}"
    if [ ${#needed[@]} -gt 0 ]; then
        say "error: needed and not there: ${needed[*]}"
        exit 1
    fi
    say "going on without: ${wanted[*]}"
fi

# --- Rust -----------------------------------------------------------------------------------

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
minimum=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml" | head -1)

rust_help() {
    say "error: $1"
    say "Rust $minimum or newer is needed. Install it with rustup, either Debian's where there is one:"
    say "    sudo apt-get install rustup && rustup default stable"
    say "or its own (https://rustup.rs):"
    say "    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh"
    exit 1
}

command -v cargo >/dev/null || rust_help "cargo is not installed"
have=$(rustc --version 2>/dev/null | awk '{ print $2 }') || true
[ "$(printf '%s\n' "$minimum" "${have:-0}" | sort -V | head -1)" = "$minimum" ] ||
    rust_help "this Rust is ${have:-unknown}"

if [ "$purpose" = test ]; then
    for component in fmt clippy; do
        cargo "$component" --version >/dev/null 2>&1 || {
            say "error: cargo $component is missing: rustup component add rustfmt clippy"
            exit 1
        }
    done
    if ! cargo nextest --version >/dev/null 2>&1; then
        say "missing: cargo-nextest, the test runner"
        say "installing it (some minutes): cargo install --locked cargo-nextest"
        cargo install --locked cargo-nextest </dev/null
    fi
    # Without it licences, bans and sources are not looked at, and the summary says so. A debug build:
    # it runs for seconds.
    if ! cargo deny --version >/dev/null 2>&1; then
        say "missing: cargo-deny, which checks the dependencies"
        say "installing it (some minutes): cargo install --debug --locked cargo-deny"
        CARGO_PROFILE_DEV_DEBUG=0 cargo install --debug --locked cargo-deny </dev/null ||
            say "cargo-deny could not be installed, going on without"
    fi
fi
