# Sourced by the launchers: fail, and find_python, which sets python (PYTHON or the PATH's), gpus and threads.

fail() { echo "error: $1" >&2; exit 1; }

find_python() {
    local found
    python=${PYTHON:-$(command -v python || command -v python3 || echo python)}
    command -v "$python" >/dev/null ||
        fail "$python is not on the PATH; activate an environment or set PYTHON, and install first: pip install -e ."
    found=$("$python" -c '
import sys
try:
    import torch
except ImportError as error:
    sys.exit(f"error: {sys.executable}: {error}; install first: pip install -e .")
print(torch.cuda.device_count(), torch.get_num_threads())')
    read -r gpus threads <<<"$found"
    [[ ${NUM_PROCESSES:-1} =~ ^[1-9][0-9]*$ ]] ||
        fail "NUM_PROCESSES is '$NUM_PROCESSES': set it to a whole number above 0, or unset it"
}
