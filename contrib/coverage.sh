#!/usr/bin/env bash
# Which lines the tests run, by crate: prints a table, and fails below the floors. Called by `make coverage`; arguments
# go to `cargo nextest run`. The crash tests are left out: what they kill tells nothing.
#
# Needs cargo-llvm-cov and LLVM's tools of the compiler's version: rustup's llvm-tools, or those named in LLVM_COV and
# LLVM_PROFDATA, or Debian's.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin
export VMAN_ACCEL=${VMAN_ACCEL:-tcg}
floor_model=95 floor=85

cargo llvm-cov --version >/dev/null 2>&1 || {
    echo "coverage: installing cargo-llvm-cov (some minutes): cargo install --locked cargo-llvm-cov" >&2
    cargo install --locked cargo-llvm-cov </dev/null
}
if [ -z "${LLVM_COV:-}" ]; then
    version=$(rustc --version --verbose | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
    if command -v "llvm-cov-$version" >/dev/null; then
        LLVM_COV=$(command -v "llvm-cov-$version")
        LLVM_PROFDATA=$(command -v "llvm-profdata-$version")
        export LLVM_COV LLVM_PROFDATA
    fi
fi

contrib/guest/build.sh
report=$(mktemp)
trap 'rm -f "$report"' EXIT
# What an earlier build has left would count as never run.
cargo llvm-cov clean --workspace
cargo llvm-cov nextest --workspace --no-report --no-fail-fast -E 'not binary(crash)' "$@"
cargo llvm-cov report -p vman -p vman-actors -p vman-model --json --summary-only --output-path "$report"

# A crate's own lines, without those of its tests.
jq -r --arg root "$PWD/" --argjson model $floor_model --argjson other $floor '
    [.data[0].files[]
     | (.filename | ltrimstr($root)) as $file
     | select($file | test("(^|/)(tests?|benches|fuzz)(/|\\.rs$)|_tests\\.rs$|/testing\\.rs$") | not)
     | {crate: (if $file | startswith("actors/model/") then "vman-model"
                elif $file | startswith("actors/") then "vman-actors" else "vman" end)} + .summary.lines]
    | group_by(.crate)
    | map({crate: .[0].crate, count: (map(.count) | add), covered: (map(.covered) | add)})
    | map(. + {percent: (100 * .covered / .count), floor: (if .crate == "vman-model" then $model else $other end)})
    | (.[] | "coverage: \(.crate): \(.percent * 10 | round / 10) % of \(.count) lines (at least \(.floor) %)"),
      (if all(.percent >= .floor) then "coverage: ok" else "coverage: too little" end)' "$report" | tee /dev/stderr |
    grep -q '^coverage: ok$'
