#!/bin/bash
# Megatron-LM on four nodes of eight GPUs.
TP=${TP:-4}
PP=2
export CUDA_DEVICE_MAX_CONNECTIONS=8
export NCCL_DEBUG=WARN

MODEL=(
    --num-layers 48 --hidden-size 8192 --ffn-hidden-size 22016 --num-attention-heads 64
    --group-query-attention --num-query-groups 8
    --seq-length 4096 --max-position-embeddings 4096 --vocab-size 64000
    --swiglu --disable-bias-linear --untie-embeddings-and-output-weights
)
PARALLEL=(
    --tensor-model-parallel-size "$TP"
    --pipeline-model-parallel-size "$PP"
    --sequence-parallel
    --tp-comm-overlap
)
TRAIN=(
    --micro-batch-size 1 --global-batch-size 256 --train-iters 1000 --lr 1e-4 --bf16
    --overlap-grad-reduce
)
torchrun --nproc-per-node 8 --nnodes 4 pretrain_gpt.py \
    "${MODEL[@]}" "${PARALLEL[@]}" "${TRAIN[@]}"
