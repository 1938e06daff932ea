#!/usr/bin/env bash
# PriMaPs-EM by hand: mask proposals of every image, then EM over class prototypes.
# Usage: primaps.sh [DATASET_OR_FOLDER] [more options of extract, e.g. --root DIR]
# BACKBONE names another backbone than the default.
# Without arguments it runs on the bundled scenes. Each command prints the path of its artifact; the proposals' folder
# holds sheet.png, the evaluation's another. For the paper's own token source add --tokens live to `train`.
set -euo pipefail

data=${1:-scenes}
shift || true

features=$(unsupseg extract --dataset "$data" --split train ${BACKBONE:+--backbone "$BACKBONE"} "$@")
masks=$(unsupseg pseudolabel --features "$features" --method primaps)
model=$(unsupseg train --pseudolabels "$masks")
unsupseg predict --model "$model" --dataset "$data" --split val
unsupseg eval --model "$model" --dataset "$data" --split val
unsupseg eval --model "$model" --dataset "$data" --split val --crf
