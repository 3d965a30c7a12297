#! /usr/bin/env bash
# Llama 3 8B on one node: options in strings with continued lines; data parallel alone.
set -euo pipefail

# Copied from a tensor-parallel script: with TP = CP = 1 it takes the overlap away.
export CUDA_DEVICE_MAX_CONNECTIONS=1
export NVTE_FWD_LAYERNORM_SM_MARGIN=16 NVTE_BWD_LAYERNORM_SM_MARGIN=16

NPROC=${NPROC:-8}
TP=${TP:-1}
SEQ_LEN="${SEQ_LEN:-${MAX_LEN:-8192}}"

OPTIONS=" \
    --tensor-model-parallel-size ${TP} \
    --pipeline-model-parallel-size 1 \
    --num-layers 32 --hidden-size 4096 --ffn-hidden-size 14336 \
    --num-attention-heads 32 --group-query-attention --num-query-groups 8 \
    --seq-length ${SEQ_LEN} --max-position-embeddings ${SEQ_LEN} \
    --swiglu --normalization RMSNorm --disable-bias-linear \
    --position-embedding-type rope --untie-embeddings-and-output-weights \
    --vocab-size 128256 --bf16"

OPTIONS="$OPTIONS --micro-batch-size=1 --global-batch-size=128"
OPTIONS+=" --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather"

if [[ "$TP" -gt 1 ]]; then
    OPTIONS+=" --sequence-parallel --tp-comm-overlap"
fi

torchrun --standalone --nproc_per_node "$NPROC" pretrain_gpt.py ${OPTIONS} 2>&1 | tee train.log
