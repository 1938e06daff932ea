#!/usr/bin/env bash
# A whole chain on a SLURM cluster: extract, pseudolabel, train, predict and eval, all but train as arrays of shards, each
# after all of what it needs has succeeded. Usage, in a folder that all nodes see: [NAME=VALUE ...] submit.sh
# Called again it submits the same jobs: what is there is reused in seconds, what was stopped goes on.
# What a job asks for (GPUs, memory, time) stands at the top of its file; SBATCH_PARTITION and SBATCH_ACCOUNT are sbatch's.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

export DATA=${DATA:-scenes}                 # name of a data set, or a folder that all nodes see
export EXTRACT=${EXTRACT:-}                 # more options of extract, such as "--backbone dinov2_vits14 --root DIR"
export SHARDS=${SHARDS:-4}                  # jobs that share each stage but train, a GPU each
export METHOD=${METHOD:-kmeans}             # a method that learns from features alone: kmeans, spectral or primaps
export CLASSES=${CLASSES:-27}
export UNSUPSEG_WORKSPACE=${UNSUPSEG_WORKSPACE:-$PWD/unsupseg-workspace}
export RUN=${RUN:-$PWD/slurm-run}           # of this chain alone: logs, and a file with the path of each artifact

mkdir -p "$RUN"
submit() { sbatch --parsable --kill-on-invalid-dep=yes --output "$RUN/%x-%j.log" "$@"; }

extract=$(submit --array "1-$SHARDS" "$here/extract.sbatch")
masks=$(submit --array "1-$SHARDS" --dependency "afterok:$extract" "$here/pseudolabel.sbatch")
model=$(submit --dependency "afterok:$masks" "$here/train.sbatch")
maps=$(submit --array "1-$SHARDS" --dependency "afterok:$model" "$here/predict.sbatch")
scores=$(submit --array "1-$SHARDS" --dependency "afterok:$model" "$here/eval.sbatch")
echo "extract $extract, pseudolabel $masks, train $model, predict $maps, eval $scores; logs and paths: $RUN"
