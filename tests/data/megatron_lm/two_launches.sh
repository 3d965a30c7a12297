#!/bin/bash
# First a short warm-up on one node, then the real run.
export CUDA_DEVICE_MAX_CONNECTIONS=1
COMMON="--num-layers 24 --hidden-size 2048 --num-attention-heads 16 --seq-length 2048 --bf16 --vocab-size 50304 --micro-batch-size 2"
python tools/preprocess_data.py --input corpus.json --vocab-size 50304
torchrun --nproc_per_node 8 pretrain_gpt.py $COMMON --global-batch-size 64 --tensor-model-parallel-size 2
torchrun --nproc_per_node 8 --nnodes 4 pretrain_gpt.py $COMMON --global-batch-size 512 --tensor-model-parallel-size 2 --sequence-parallel --use-distributed-optimizer --overlap-grad-reduce
