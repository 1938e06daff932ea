#!/usr/bin/env bash
# CamVid, 11 classes, protocol native (whole image, scored at original size): k-means baseline and linear probe.
# Fitted on train; --split val for choices; the test split is scored once per table.
#
#   benchmarks/camvid.sh CAMVID_ROOT [SPLIT] [more options of extract, e.g. --backbone dinov2_vits14 --weights FILE]
set -euo pipefail

root=${1:?usage: camvid.sh CAMVID_ROOT [SPLIT] [extract options]}
split=${2:-test}
shift $(( $# < 2 ? $# : 2 ))
evaluations=()

features=$(unsupseg extract --dataset camvid --root "$root" --split train --size 0 "$@")
for seed in 0 1 2; do
    masks=$(unsupseg pseudolabel --features "$features" --method kmeans --seed "$seed")
    model=$(unsupseg train --pseudolabels "$masks" --seed "$seed")
    evaluations+=("$(unsupseg eval --model "$model" --dataset camvid --split "$split" --linear-probe --seed "$seed")")
done
python "$(dirname "$0")/table.py" "${evaluations[@]}"
