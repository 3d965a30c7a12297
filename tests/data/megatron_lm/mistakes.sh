#!/bin/bash
# What goes wrong at start, or unseen: each argument alone looks sound.
GPUS=`nvidia-smi -L | wc -l`
export CUDA_DEVICE_MAX_CONNECTIONS=8
torchrun --nproc_per_node $GPUS --nnodes 4 pretrain_gpt.py \
    --num-layers 32 --hidden-size 4096 --num-attention-heads 32 --seq-length 4096 --bf16 \
    --vocab-size 50304 --micro-batch-size 1 --global-batch-size 64 \
    --tensor-model-parallel-size 4 \
    --pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 4 \
    --no-overlap-p2p-communication \
    --tp-comm-overlap \
    --overlap-param-gather --fp8-format hybrid --fp8-param-gather
