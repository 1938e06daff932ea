#!/usr/bin/env bash
# TransFGU by hand: concepts from crops of the images, a map of each concept, then a mask transformer trained in cycles.
# Usage: transfgu.sh [DATASET_OR_FOLDER] [more options of extract, e.g. --root DIR]
# BACKBONE names another backbone than the default.
# Without arguments it runs on the bundled scenes. Each command prints the path of its artifact; the pseudo-labels' folder
# holds sheet.png and classes.png, the evaluation's another sheet. REGIONS are options of the crops: more --scales and a larger
# --size take longer, --embed masked a fraction. With images of objects leave out --foreground-share 0, and add --set background=true
# to `pseudolabel`.
# For the paper's own token source add --tokens live to `train`.
set -euo pipefail

data=${1:-scenes}
shift || true
read -ra regions <<<"${REGIONS:---scales 0.5 --size 96 --foreground-share 0}"

features=$(unsupseg extract --dataset "$data" --split train --keep patch,cls,attention ${BACKBONE:+--backbone "$BACKBONE"} "$@")
crops=$(unsupseg extract --dataset "$data" --split train --regions anchors ${BACKBONE:+--backbone "$BACKBONE"} "$@" "${regions[@]}")
masks=$(unsupseg pseudolabel --features "$features" --regions "$crops" --method transfgu)
model=$(unsupseg train --features "$features" --pseudolabels "$masks" \
    --set "cycles=${CYCLES:-2}" --set "cycle_steps=${CYCLE_STEPS:-100}")
unsupseg eval --model "$model" --dataset "$data" --split val
