#!/usr/bin/env bash
# Reconstruction metrics: tools/evaluate.sh CONFIG CHECKPOINT [OUT] [--flag value ...] [key=value ...]
# CONFIG is a YAML file; CHECKPOINT a checkpoint directory, a run directory (its newest) or a released weight file; OUT
# where results go. Flags: scripts/evaluate.py --help. Environment:
#   CHECKPOINT_DIR, DATA_DIR   pretrained networks and shards (muse_tiny: checkpoints/ and data/ of the repository)
#   NUM_PROCESSES              default: the GPUs here, or 1 on CPU
#   PYTHON                     the interpreter; default: python on the PATH
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$root/tools/_python.sh"
if [ $# -lt 2 ]; then
    echo "error: usage: tools/evaluate.sh CONFIG CHECKPOINT [OUT] [--flag value ...] [key=value ...]" >&2
    exit 2
fi
config=$1 checkpoint=$2
shift 2
arguments=(--config "$config" --checkpoint "$checkpoint")
if [ $# -gt 0 ] && [[ $1 != -* && $1 != *=* ]]; then
    arguments+=(--output "$1")
    shift
fi
if [[ $config == *muse_tiny/* ]]; then
    export CHECKPOINT_DIR=${CHECKPOINT_DIR:-$root/checkpoints} DATA_DIR=${DATA_DIR:-$root/data}
fi
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
find_python
processes=${NUM_PROCESSES:-$((gpus > 1 ? gpus : 1))}
launch=()
if [ "$processes" -gt 1 ] && [ "$gpus" -gt 0 ]; then
    launch=(-m accelerate.commands.launch --quiet --multi_gpu --num_machines 1 --num_processes "$processes"
            --mixed_precision no --dynamo_backend no)
elif [ "$processes" -gt 1 ]; then  # accelerate launch needs MPI to start several processes on CPU
    launch=(-m torch.distributed.run --standalone --nproc_per_node "$processes")
fi
exec "$python" "${launch[@]}" "$root/scripts/evaluate.py" "${arguments[@]}" "$@"
