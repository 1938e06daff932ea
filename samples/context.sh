#!/usr/bin/env bash
# Context-aware clustering by hand, and its four ablations: the pyramid's guidance (PSG) and the context-aware embedding
# (CAE) on and off. A re-interpretation of Zhuo et al. (IEEE TMM 2024) from the abstract.
# Usage: context.sh [DATASET_OR_FOLDER] [more options of extract, e.g. --root DIR]
# BACKBONE names another backbone than the default.
# Without arguments it runs on the bundled scenes. Each command prints the path of its artifact; the pseudo-labels' folder
# holds sheet.png (the highest class of the guidance) and classes.png (the views that hold most of each class), each
# evaluation's another sheet. PYRAMID are options of the views, STEPS those of each training. For changes of colour before
# the backbone, and mirror images through it, add --tokens live to `train`.
set -euo pipefail

data=${1:-scenes}
shift || true
read -ra pyramid <<<"${PYRAMID:---levels 2 --size 96}"

features=$(unsupseg extract --dataset "$data" --split train --keep patch,cls ${BACKBONE:+--backbone "$BACKBONE"} "$@")
views=$(unsupseg extract --dataset "$data" --split train --regions pyramid --keep cls,patch ${BACKBONE:+--backbone "$BACKBONE"} "$@" "${pyramid[@]}")
masks=$(unsupseg pseudolabel --features "$features" --regions "$views" --method context)
evaluations=()
for parts in "psg=true cae=true" "psg=true cae=false" "psg=false cae=true" "psg=false cae=false"; do
    read -r psg cae <<<"$parts"
    model=$(unsupseg train --pseudolabels "$masks" --set "$psg" --set "$cae" --set "steps=${STEPS:-200}")
    evaluations+=("$(unsupseg eval --model "$model" --dataset "$data" --split val)")
    echo "${evaluations[-1]}"
done
unsupseg compare "${evaluations[@]}"
