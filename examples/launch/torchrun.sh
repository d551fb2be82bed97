#!/usr/bin/env bash
# Starts this node's part of a training run and ends with the exit code of the rank that failed first.
#
#     bash examples/launch/torchrun.sh [options] -- --config RECIPE.yaml [key.sub=value ...]
#
# The same command runs on every node, with its own --node-rank; everything after -- goes to tools/train.py.
# An option that is left out is read from the environment; PET_* are the names that Kubeflow's PyTorchJob sets.
#
#   --nodes N           number of nodes                 NNODES, PET_NNODES                       1
#   --node-rank R       this node's number, from 0      NODE_RANK, PET_NODE_RANK, SLURM_NODEID   0
#   --ranks-per-node P  processes on a node             NPROC_PER_NODE                           its GPUs, else 1
#   --address HOST      node 0 for the others           MASTER_ADDR, PET_MASTER_ADDR             127.0.0.1
#   --port PORT         a free port on node 0           MASTER_PORT, PET_MASTER_PORT             29500
#   --id NAME           the run, for every node         RDZV_ID                                  megatron_sts
#   --interface NAME    network between the nodes       INTERFACE                                the way to node 0
#   --logs DIR          ranks' output (shared storage)  LOG_DIR                                  logs
#
# Python is $PYTHON, else python3: the image's, or that of an environment that was activated.
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd -P)

nodes=${NNODES:-${PET_NNODES:-1}}
node_rank=${NODE_RANK:-${PET_NODE_RANK:-${SLURM_NODEID:-0}}}
ranks=${NPROC_PER_NODE:-}
address=${MASTER_ADDR:-${PET_MASTER_ADDR:-127.0.0.1}}
port=${MASTER_PORT:-${PET_MASTER_PORT:-29500}}
id=${RDZV_ID:-megatron_sts}
interface=${INTERFACE:-}
logs=${LOG_DIR:-logs}

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

while [ $# -gt 0 ] && [ "$1" != -- ]; do
    [ $# -ge 2 ] || fail "$1 has no value; options come in pairs, and what is for tools/train.py follows --"
    case $1 in
        --nodes) nodes=$2 ;;
        --node-rank) node_rank=$2 ;;
        --ranks-per-node) ranks=$2 ;;
        --address) address=$2 ;;
        --port) port=$2 ;;
        --id) id=$2 ;;
        --interface) interface=$2 ;;
        --logs) logs=$2 ;;
        *) fail "unknown option '$1'; what is for tools/train.py follows --" ;;
    esac
    shift 2
done
[ $# -ge 2 ] || fail "nothing to train: add -- --config RECIPE.yaml"
shift

gpus=0
if command -v nvidia-smi >/dev/null; then
    gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true)
fi
if [ -z "$ranks" ]; then
    ranks=$((gpus > 0 ? gpus : 1))
fi
for number in "nodes=$nodes" "node-rank=$node_rank" "ranks-per-node=$ranks" "port=$port"; do
    [[ ${number#*=} =~ ^[0-9]+$ ]] || fail "--${number%%=*} is '${number#*=}', which is not a number"
done
[ "$node_rank" -lt "$nodes" ] || fail "node rank $node_rank of $nodes nodes; ranks of nodes are 0 to $((nodes - 1))"

if [ "$gpus" -gt 0 ]; then
    # One hardware queue, so that kernels start in the order in which they were launched: under tensor parallelism a
    # transfer then begins before the matrix product that is to hide it, and not after.
    export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1}
    # NCCL's warnings name the peer and the network that failed; without them a run just ends at its timeout.
    export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
    # Sequence lengths change from step to step: blocks of memory that grow leave less between them unused.
    export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}
    # What is sent beside a layer norm gets processors of the GPU of its own.
    export NVTE_FWD_LAYERNORM_SM_MARGIN=${NVTE_FWD_LAYERNORM_SM_MARGIN:-16}
    export NVTE_BWD_LAYERNORM_SM_MARGIN=${NVTE_BWD_LAYERNORM_SM_MARGIN:-16}
    # Compiled kernels outlive the job, so that a resume does not compile them again.
    export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/torchinductor}
    export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/triton}
    # The last collectives of each rank are kept, and written when NCCL's own timeout is over: the rank that lacks the
    # newest is the one that was waited for. The ranks' watchdog, which names it, ends them a minute earlier.
    export TORCH_FR_BUFFER_SIZE=${TORCH_FR_BUFFER_SIZE:-2000}
    export TORCH_NCCL_DUMP_ON_TIMEOUT=${TORCH_NCCL_DUMP_ON_TIMEOUT:-1}
    export TORCH_FR_DUMP_TEMP_FILE=${TORCH_FR_DUMP_TEMP_FILE:-$logs/collectives_of_rank_}
fi
# Threads of a rank on the CPU, where its checkpoints are copied; torchrun's own choice is one.
cores=$(nproc)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores / ranks > 8 ? 8 : cores / ranks > 1 ? cores / ranks : 1))}
if [ -n "$interface" ]; then
    # Machines with several networks: both libraries would take one that the other nodes may not reach.
    export GLOO_SOCKET_IFNAME=$interface NCCL_SOCKET_IFNAME=$interface
fi

# The package that lies beside this script, also where an image has another copy of it.
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
mkdir -p -- "$logs/node_$node_rank"
# Static rendezvous: ranks follow the order of the nodes, and with it what lies near together in the network. No restart
# here: a run that lost a node needs another one, which the scheduler gives; started again, it resumes by itself.
exec "${PYTHON:-python3}" "$root/tools/launch.py" \
    --nnodes "$nodes" --node-rank "$node_rank" --nproc-per-node "$ranks" \
    --master-addr "$address" --master-port "$port" --rdzv-id "$id" --max-restarts 0 \
    --log-dir "$logs/node_$node_rank" --redirects 3 --tee 0:3 \
    "$root/tools/train.py" "$@"
