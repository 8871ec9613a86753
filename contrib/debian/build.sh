#!/usr/bin/env bash
# Builds the Debian package: the binary, then what is made from it (manual, completions), then
# the package by cargo-deb. Called by `make deb`; says where the package is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PATH=$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin
target=${CARGO_TARGET_DIR:-target}
made=contrib/debian/out

cargo deb --version >/dev/null 2>&1 || {
    echo "deb: installing cargo-deb (some minutes): cargo install --locked cargo-deb" >&2
    cargo install --locked cargo-deb </dev/null
}
cargo build --release --locked
rm -rf "$made"
mkdir -p "$made/man"
"$target/release/vman" man "$made/man"
"$target/release/vman" completion bash >"$made/vman.bash"
"$target/release/vman" completion zsh >"$made/_vman"
"$target/release/vman" completion fish >"$made/vman.fish"
cargo deb --no-build --strip --locked --output "$target/debian/" "$@"
