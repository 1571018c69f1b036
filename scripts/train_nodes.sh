#!/bin/bash
# Train on several machines without a scheduler: run the same command on each of them.
#
# command:   NODES=2 GPUS=8 HOST=first-machine bash scripts/train_nodes.sh configs/cifar10.yaml /nfs/run --data.batch_size 8
#
# All machines must see the run's folder; HOST is the first of them. After a failure, the same command resumes the run.
# In a container: CONTAINER="apptainer exec --nv FILE.sif" NODES=2 ...
: "${NODES:?the number of machines}" "${GPUS:?the number of GPUs of each machine}" "${HOST:?the first machine}"
config=${1:?the config, such as configs/NAME.yaml, and the folder of the run} run=${2:?the folder of the run}
shift 2
resume=()
# .unsaved: the run was stopped before its first checkpoint, and begins again
if [ -e "$run/last.ckpt" ] || [ -e "$run/last-previous.ckpt" ] || [ -e "$run/.unsaved" ]; then
    resume=(--ckpt_path last)
fi
# shellcheck disable=SC2086  # several words
exec ${CONTAINER:-} torchrun --nnodes "$NODES" --nproc_per_node "$GPUS" --rdzv_backend c10d --rdzv_endpoint "$HOST:29400" \
    -m lightning_ddpm fit --config "$config" --trainer.default_root_dir "$run" --trainer.strategy ddp \
    --trainer.num_nodes "$NODES" --trainer.devices "$GPUS" "$@" "${resume[@]}"
