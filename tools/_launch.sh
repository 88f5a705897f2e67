#!/usr/bin/env bash
# Train one stage: _launch.sh STAGE [muse_1b|muse_3b|muse_tiny|FILE.yaml] [key=value ...]
# Called by train_stage{1,2,3}.sh; relative paths are taken from where it is called. Environment:
#   CHECKPOINT_DIR, DATA_DIR   pretrained networks and shards (muse_tiny: checkpoints/ and data/ of the repository)
#   NUM_PROCESSES              processes over all machines; default: the GPUs here times NUM_MACHINES, or 1 on CPU
#   NUM_MACHINES, MACHINE_RANK, MAIN_PROCESS_IP, MAIN_PROCESS_PORT   for more than one machine
#   MIXED_PRECISION            no, fp16 or bf16 in place of the config's
#   PYTHON                     the interpreter; default: python on the PATH
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$root/tools/_python.sh"

stage=$1; shift
config=muse_1b
if [ $# -gt 0 ] && [[ $1 != *=* ]]; then config=$1; shift; fi

if [ "$config" = muse_tiny ]; then
    export CHECKPOINT_DIR=${CHECKPOINT_DIR:-$root/checkpoints} DATA_DIR=${DATA_DIR:-$root/data}
fi
if [[ $config == *.yaml || $config == *.yml ]]; then
    file=$config
else
    file=$root/configs/$config/stage$stage.yaml
    [ -f "$file" ] || fail "unknown configuration '$config'; use muse_1b, muse_3b, muse_tiny or a YAML file"
    [ -n "${CHECKPOINT_DIR:-}" ] || fail "CHECKPOINT_DIR is not set: export CHECKPOINT_DIR=/path/to/pretrained/models"
    [ -n "${DATA_DIR:-}" ] || fail "DATA_DIR is not set: export DATA_DIR=/path/to/datasets"
fi
[ -f "$file" ] || fail "config file $file does not exist"
if [ -n "${MIXED_PRECISION:-}" ]; then set -- "$@" "training.mixed_precision=$MIXED_PRECISION"; fi

find_python
machines=${NUM_MACHINES:-1}
launch=(--num_machines "$machines" --machine_rank "${MACHINE_RANK:-0}" --dynamo_backend no)
launch+=(--mixed_precision "${MIXED_PRECISION:-no}")  # the script itself sets the config's
if [ "$gpus" -eq 0 ]; then
    [ "${NUM_PROCESSES:-1}" -eq 1 ] ||
        fail "NUM_PROCESSES=$NUM_PROCESSES, but no GPU was found; one process runs on CPU"
    export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}  # spinning threads cost several times the step on shared cores
    launch+=(--cpu --num_processes 1 --num_cpu_threads_per_process "$threads")
else
    processes=${NUM_PROCESSES:-$((gpus * machines))}
    launch+=(--num_processes "$processes")
    if [ "$processes" -gt 1 ]; then launch+=(--multi_gpu); fi
fi
if [ -n "${MAIN_PROCESS_IP:-}" ]; then launch+=(--main_process_ip "$MAIN_PROCESS_IP"); fi
if [ -n "${MAIN_PROCESS_PORT:-}" ]; then launch+=(--main_process_port "$MAIN_PROCESS_PORT"); fi

export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
exec "$python" -m accelerate.commands.launch --quiet "${launch[@]}" \
    "$root/scripts/train_stage$stage.py" --config "$file" "$@"
