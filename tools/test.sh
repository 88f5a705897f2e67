#!/usr/bin/env bash
# Install MUSE with what its tests need and run them: tools/test.sh [pytest arguments]
# Uses the virtual environment MUSE_VENV, else the active one, else .venv-test (made when absent).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=${MUSE_VENV:-${VIRTUAL_ENV:-.venv-test}}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -m pip install --quiet -e ".[eval,logging,demo,parquet,dev]"
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}  # spinning threads are slow where cores are shared
exec "$venv/bin/python" -m pytest -m "not slow" "$@"
