#!/usr/bin/env bash
# PriMaPs-EM on top of STEGO: the same pipeline once more on the codes of STEGO's head.
# Usage: stego_primaps.sh [DATASET_OR_FOLDER] [more options of extract, e.g. --root DIR]
# BACKBONE names another backbone than the default.
# Without arguments it runs on the bundled scenes. STEPS sets the steps of STEGO.
set -euo pipefail

data=${1:-scenes}
shift || true

features=$(unsupseg extract --dataset "$data" --split train ${BACKBONE:+--backbone "$BACKBONE"} "$@")
graph=$(unsupseg graph --features "$features")
stego=$(unsupseg train --method stego --features "$features" --graph "$graph" --set steps="${STEPS:-1000}")
codes=$(unsupseg extract --dataset "$data" --split train --model "$stego" "$@")
masks=$(unsupseg pseudolabel --features "$codes" --method primaps)
model=$(unsupseg train --pseudolabels "$masks")
unsupseg eval --model "$model" --dataset "$data" --split val
unsupseg eval --model "$model" --dataset "$data" --split val --crf
