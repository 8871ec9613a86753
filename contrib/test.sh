#!/usr/bin/env bash
# Runs all tests, one step after the other, and ends with a summary line. Called by `make test`
# and `make test-long`; arguments go to `cargo nextest run`.
#
# A test that cannot run on this host writes one line, "name: reason", to the file named in
# VMAN_TEST_SKIPS and passes; the lines are shown and counted at the end. So is a step that is
# left out.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin
# KVM may be there and broken; what the tests are to show does not depend on it.
export VMAN_ACCEL=${VMAN_ACCEL:-tcg}
VMAN_TEST_SKIPS=$(mktemp)
export VMAN_TEST_SKIPS
log=$(mktemp)
trap 'rm -f "$VMAN_TEST_SKIPS" "$log"' EXIT

started=$SECONDS done_steps=() current=''
step() {
    current=$1
    shift
    printf '\n== %s: %s\n' "$current" "$*"
    "$@"
    done_steps+=("$current")
}
left_out() {
    printf '\n== %s: NOT RUN: %s\n' "$1" "$2"
    echo "step $1: $2" >>"$VMAN_TEST_SKIPS"
}

finish() {
    local status=$? skips
    skips=$(wc -l <"$VMAN_TEST_SKIPS")
    echo
    if [ "$skips" -gt 0 ]; then
        echo "== could not run on this host ($skips):"
        sort "$VMAN_TEST_SKIPS" | sed 's/^/   /'
    fi
    # Once more at the end, where one looks: nextest's own count.
    grep -aE '^ *Summary ' "$log" | tail -1 || true
    if [ "$status" = 0 ]; then
        echo "== all passed in $((SECONDS - started)) s: ${done_steps[*]}; $skips could not run on this host"
    else
        echo "== FAILED in step '$current' after $((SECONDS - started)) s (passed before: ${done_steps[*]:-none}); $skips could not run on this host"
    fi
    rm -f "$VMAN_TEST_SKIPS" "$log"
    exit "$status"
}
trap finish EXIT

nextest() {
    # A pipe would hide colours and progress from a terminal, but the summary is wanted again.
    local colour=never
    [ -t 2 ] && colour=always
    cargo nextest run --workspace --color "$colour" "$@" 2> >(tee >(sed 's/\x1b\[[0-9;]*m//g' >"$log") >&2)
}

step guest contrib/guest/build.sh
if ! contrib/guest/build.sh --disk; then
    left_out guest-disk "the disk image could not be built, see above; tests that boot from it cannot run"
fi
step fmt cargo fmt --all --check
step clippy cargo clippy --workspace --all-targets -- -D warnings
step nextest nextest "$@"
step steps cargo nextest run --features failpoints --test steps "$@"
step doc cargo test --doc --workspace
# Only with the long tests: they take minutes, two release builds, and tools that may not be there.
if [[ " $* " == *" --run-ignored all "* ]]; then
    step debian tests/debian/run.sh
    step debian-net tests/debian/net.sh
    if contrib/schemathesis/install.sh >/dev/null; then
        step schemathesis contrib/schemathesis/run.sh
    else
        left_out schemathesis "schemathesis is not there and cannot be installed (see above)"
    fi
fi
# What reads strangers' bytes, by the fuzzer; `cargo nextest` above has had its short round
# (tests/hostile).
if [[ " $* " == *" --run-ignored all "* ]]; then
    if cargo fuzz --version >/dev/null 2>&1; then
        step fuzz contrib/fuzz.sh
    else
        left_out fuzz "cargo-fuzz is not installed (make fuzz installs it)"
    fi
fi
if cargo deny --version >/dev/null 2>&1; then
    step deny cargo deny --log-level error check licenses bans sources
else
    left_out deny "cargo-deny is not installed (make deny installs it)"
fi
