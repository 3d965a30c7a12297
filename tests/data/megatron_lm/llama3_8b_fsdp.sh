#!/bin/bash
# Megatron FSDP with tensor parallelism; the variable of Megatron DDP's scripts stops the job.
CUDA_DEVICE_MAX_CONNECTIONS=1 python -m torch.distributed.run --nproc-per-node=8 --nnodes=2 \
    pretrain_gpt.py \
    --use-megatron-fsdp --data-parallel-sharding-strategy optim_grads_params \
    --no-gradient-accumulation-fusion --ckpt-format fsdp_dtensor \
    --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather \
    --tensor-model-parallel-size 2 --sequence-parallel \
    --num-layers 32 --hidden-size 4096 --ffn-hidden-size 14336 --num-attention-heads 32 \
    --group-query-attention --num-query-groups 8 --seq-length 8192 --swiglu --bf16 \
    --micro-batch-size 1 --global-batch-size 128 --vocab-size 128256
