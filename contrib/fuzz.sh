#!/usr/bin/env bash
# Fuzzes for a short while: each target of fuzz/fuzz_targets, or those that are named.
#
#   contrib/fuzz.sh [TARGET...]      FUZZ_SECONDS=60 for each (the default)
#
# A new target is a file in fuzz/fuzz_targets and its [[bin]] in fuzz/Cargo.toml; words that it is
# to try are in fuzz/<target>.dict, one that must be found by luck otherwise. What was learnt stays
# in fuzz/corpus for the next time, what was found lies in fuzz/artifacts.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin
# libFuzzer's coverage is an unstable flag of the compiler; any compiler has it.
export RUSTC_BOOTSTRAP=1
seconds=${FUZZ_SECONDS:-60}

if ! cargo fuzz --version >/dev/null 2>&1; then
    echo "fuzz: missing: cargo-fuzz; installing it: cargo install --locked cargo-fuzz" >&2
    cargo install --locked cargo-fuzz </dev/null
fi

targets=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(cargo fuzz list)
for target in "${targets[@]}"; do
    printf '\n== fuzz: %s, %s s\n' "$target" "$seconds"
    options=(-max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -malloc_limit_mb=256
        -print_final_stats=1 -verbosity=0)
    [ ! -e "fuzz/$target.dict" ] || options+=(-dict="fuzz/$target.dict")
    # What is fuzzed has no unsafe code: no sanitizer is needed, and there are more runs without.
    cargo fuzz run --sanitizer none --target-dir "${CARGO_TARGET_DIR:-target}/fuzz" \
        "$target" -- "${options[@]}"
done
echo "fuzz: nothing was found"
