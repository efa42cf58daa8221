#!/bin/bash
# sbatch --nodes 2 --gpus-per-node 8 recipes/slurm.sh recipes/sft_cot.py --config sft_cot_llava --num_processes 16
#
# One `accelerate launch` on every node of the job, one process on every GPU. Everything after the
# script's name is the recipe and its settings; submit it from the repository's folder, with the
# environment active. What the site decides comes from outside: nodes, GPUs, partition and time from
# sbatch's options, and
#
#   ACCELERATE_CONFIG   launch configuration (default: recipes/accelerate/ddp.yaml)
#   GPUS_PER_NODE       processes on a node (default: the GPUs that Slurm gave to it)
#   MAIN_PORT           port on the first node (default: made from the job's number)
#
# A job that was stopped or requeued goes on from its last checkpoint: output_dir, the data and the
# cache (VLMFACE_CACHE) must lie where all nodes see them.
#SBATCH --job-name=vlmface
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

[ $# -gt 0 ] || { echo "error: say which recipe: sbatch recipes/slurm.sh recipes/sft_cot.py ..." >&2; exit 2; }
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MAIN_HOST=${hosts[0]}
export MAIN_PORT=${MAIN_PORT:-$((20000 + SLURM_JOB_ID % 20000))}
export GPUS_PER_NODE=${GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:?no GPUs in this job: pass --gpus-per-node to sbatch, or set GPUS_PER_NODE}}
export ACCELERATE_CONFIG=${ACCELERATE_CONFIG:-recipes/accelerate/ddp.yaml}

# SLURM_NODEID differs on each node, so the node's own shell has to read it.
srun --ntasks-per-node=1 --kill-on-bad-exit=1 bash -c 'exec accelerate launch \
    --config_file "$ACCELERATE_CONFIG" \
    --num_machines "$SLURM_NNODES" --machine_rank "$SLURM_NODEID" \
    --num_processes "$((SLURM_NNODES * GPUS_PER_NODE))" \
    --main_process_ip "$MAIN_HOST" --main_process_port "$MAIN_PORT" \
    "$@"' -- "$@"
