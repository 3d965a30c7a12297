#!/bin/bash
# Mixture of experts with expert-parallel overlap, in a container, started without torchrun.
set -a
CUDA_DEVICE_MAX_CONNECTIONS=32
set +a

EP=8; PP=4; VPP=2
case "${GPU:-h100}" in
    b200|gb200) MBS=2 ;;
    *)          MBS=1 ;;
esac

MOE_ARGS=(
    --num-experts 8 --expert-model-parallel-size $EP --expert-tensor-parallel-size 1
    --moe-router-topk 2 --moe-token-dispatcher-type alltoall --moe-grouped-gemm
    --overlap-moe-expert-parallel-comm
    --delay-wgrad-compute
)
ARGS=(
    --num-layers 32 --hidden-size 4096 --ffn-hidden-size 14336 --num-attention-heads 32
    --group-query-attention --num-query-groups 8 --seq-length 4096 --swiglu --disable-bias-linear
    --normalization RMSNorm --position-embedding-type rope --untie-embeddings-and-output-weights
    --vocab-size 32000 --bf16
    --tensor-model-parallel-size 1
    --pipeline-model-parallel-size $PP --num-virtual-stages-per-pipeline-rank $VPP
    --micro-batch-size $MBS --global-batch-size 256
    --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather
    "${MOE_ARGS[@]}"
)
if command -v nvidia-smi > /dev/null; then
    ARGS+=(--log-device-memory-used)
fi

srun --ntasks=64 --ntasks-per-node=8 python -u pretrain_gpt.py "${ARGS[@]}" ${EXTRA_ARGS}
