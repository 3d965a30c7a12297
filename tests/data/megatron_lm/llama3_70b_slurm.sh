#!/bin/bash
#SBATCH --job-name=llama3-70b
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive

source /opt/cluster/env.sh
export NCCL_IB_SL=1
export CUDA_DEVICE_MAX_CONNECTIONS=1

head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
head_node_ip=$(srun --nodes=1 --ntasks=1 -w "$head_node" hostname --ip-address)

if [ ! -d "$CKPT_DIR" ]; then
    mkdir -p "$CKPT_DIR"
fi

args() {
    # Every layer of the launch adds its part.
    local tp=$1 pp=$2
    MODEL="--num-layers 80 --hidden-size 8192 --ffn-hidden-size 28672 --num-attention-heads 64"
    MODEL+=" --group-query-attention --num-query-groups 8 --seq-length 8192 --swiglu --bf16"
    MODEL+=" --disable-bias-linear --untie-embeddings-and-output-weights --vocab-size 128256"
    MODEL+=" --position-embedding-type rope --normalization RMSNorm"
    LAYOUT="--tensor-model-parallel-size $tp --pipeline-model-parallel-size $pp --sequence-parallel"
    LAYOUT+=" --num-layers-per-virtual-pipeline-stage 5 --context-parallel-size 2"
}
args 4 4

read -r -d '' run_cmd <<EOF
torchrun --nnodes ${SLURM_NNODES} --nproc_per_node 8 --rdzv_id \$SLURM_JOB_ID \
  --rdzv_backend c10d --rdzv_endpoint ${head_node_ip}:29500 \
  pretrain_gpt.py ${MODEL} ${LAYOUT} \
  --micro-batch-size 1 --global-batch-size 128 \
  --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather \
  --tp-comm-overlap
EOF

srun -l --container-image=megatron.sqsh --output=%x_%j.log bash -c "${run_cmd}"
