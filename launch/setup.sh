#!/usr/bin/env bash
# Makes .venv, installs the project there (CPU JAX unless EVATOK_EXTRA names another) and fetches the
# assets. Sourced by the other scripts; does nothing twice.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-}
if [ -z "$PYTHON" ]; then
    for name in python3 python3.13 python3.12 python3.11; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            PYTHON=$name
            break
        fi
    done
fi
[ -n "$PYTHON" ] || { echo "Python 3.11 or newer is needed (set PYTHON to it)" >&2; exit 2; }

extras=${EVATOK_EXTRA:-test}
stamp=.venv/installed
wanted="$("$PYTHON" -c 'import sys; print(sys.version)') $extras $(cksum setup.py)"
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
    echo "installing into .venv ..."
    rm -rf .venv
    "$PYTHON" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".[$extras]"
    printf '%s' "$wanted" >"$stamp"
fi
export PATH="$PWD/.venv/bin:$PATH"
