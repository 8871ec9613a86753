#!/usr/bin/env bash
# Throws generated requests, one by one and in sequences, at a daemon on the simulated host, and
# holds its answers against the document that it serves. Needs a built vman; schemathesis is had by
# install.sh. Called by `make test-long`; arguments go to `schemathesis run`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
schemathesis=$(contrib/schemathesis/install.sh)
vman=${VMAN:-${CARGO_TARGET_DIR:-target}/debug/vman}
folder=$(mktemp -d)
daemon=''
finish() {
    [ -z "$daemon" ] || kill "$daemon" 2>/dev/null || true
    rm -rf "$folder"
}
trap finish EXIT

port=${PORT:-18230}
env -i PATH="$PATH" HOME="$folder" VMAN_STORAGE_PATH="$folder/storage" \
    VMAN_RUNTIME_PATH="$folder/run" VMAN_LISTEN="127.0.0.1:$port" VMAN_AUTH=none \
    VMAN_OPERATOR_DRY_RUN=1 VMAN_LOG_FORMAT=text "$vman" serve >"$folder/log" 2>&1 &
daemon=$!
for _ in $(seq 100); do
    sleep 0.1
    # First: somebody else's daemon may be at that port.
    kill -0 "$daemon" 2>/dev/null || { cat "$folder/log" >&2; exit 1; }
    curl -fs "http://127.0.0.1:$port/ready" >/dev/null && break
done
# As JSON: a stream of events has no end to wait for (tests/api/streams.rs has those).
status=0
"$schemathesis" --config-file contrib/schemathesis/schemathesis.toml run \
    "http://127.0.0.1:$port/openapi.json" --max-examples "${EXAMPLES:-30}" --request-timeout 60 \
    --header "Accept: application/json" "$@" || status=$?
kill -0 "$daemon" 2>/dev/null || { echo "the daemon ended:" >&2; tail -50 "$folder/log" >&2; exit 1; }
exit "$status"
