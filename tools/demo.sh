#!/usr/bin/env bash
# The whole of MUSE in miniature, from nothing to a table and a picture: tools/demo.sh [--quick] [--seed N] [--output DIR]
# For Debian or Ubuntu with Python 3.10 or newer. Uses the virtual environment MUSE_VENV, else the active one, else .venv
# (made when absent). Interrupted and started again it goes on where it was.
set -euo pipefail
called_from=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { echo "error: $1" >&2; exit 1; }

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
    fail "$python is older than 3.10 or missing; install Python 3.10 or newer, or name one: PYTHON=python3.12 bash tools/demo.sh"
command -v dpkg-deb >/dev/null && command -v apt-get >/dev/null ||
    fail "apt-get and dpkg-deb are missing; the demo's photographs come in Debian packages, so it needs Debian or Ubuntu"

venv=${MUSE_VENV:-${VIRTUAL_ENV:-.venv}}
if [ ! -x "$venv/bin/pip" ]; then
    echo "making the virtual environment $venv"
    "$python" -m venv "$venv" || fail "could not make a virtual environment; install it with: apt-get install python3-venv"
fi
echo "installing (the first time downloads PyTorch)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e ".[demo]"
root=$PWD venv=$(cd "$venv" && pwd)
cd "$called_from"
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}  # spinning threads are slow where cores are shared
exec "$venv/bin/python" "$root/scripts/demo.py" "$@"
