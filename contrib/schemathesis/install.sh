#!/usr/bin/env bash
# Makes sure that there is a schemathesis, and prints where: on PATH, or in a Python environment of
# its own below the build folder. Fails, saying why, where neither can be had.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
if command -v schemathesis; then
    exit
fi
folder=${CARGO_TARGET_DIR:-target}/schemathesis
if [ ! -x "$folder/bin/schemathesis" ]; then
    echo "installing schemathesis from the Python registry into $folder" >&2
    { python3 -m venv "$folder" && "$folder/bin/pip" install --quiet 'schemathesis>=4.32,<5'; } >&2 ||
        { rm -rf "$folder"; exit 1; }
fi
echo "$folder/bin/schemathesis"
