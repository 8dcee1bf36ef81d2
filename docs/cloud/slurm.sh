#!/usr/bin/env bash
# A job of SLURM that goes on by itself after a time limit, a preemption and the loss of a node.
#
#   sbatch docs/cloud/slurm.sh gpt train gpt2-xl --run.mesh.fsdp 32 --run.workdir /shared/gpt2-xl
#
# The checkout, the run's directory and TFDS_DATA_DIR lie where all nodes see them. One task is one
# process, with all GPUs of its node.
#
#SBATCH --job-name=jaxhist
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail
: "${TFDS_DATA_DIR:?say where the data sets are: export TFDS_DATA_DIR=...}"
python=${PYTHON:-.venv/bin/python}
experiment=$1
shift

# A process would take one GPU only, unless it is told that all of its node are its own.
if [ -n "${SLURM_GPUS_ON_NODE:-}" ]; then
    JAX_LOCAL_DEVICE_IDS=$(seq --separator=, 0 $((SLURM_GPUS_ON_NODE - 1)))
    export JAX_LOCAL_DEVICE_IDS
fi

# Five minutes before the time is over, or when the job is preempted, SLURM sends SIGTERM to each
# process. They save at the same step and leave with 75: the job is to be started again.
srun --kill-on-bad-exit=0 "$python" -m "experiments.$experiment" "$@" --run.distributed
code=$?
if [ "$code" -eq 75 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
