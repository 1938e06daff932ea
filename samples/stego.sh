#!/usr/bin/env bash
# STEGO by hand: a head that distils the features' correspondences within images, between neighbours, and between
# random images. Usage: stego.sh [DATASET_OR_FOLDER] [more options of extract, e.g. --root DIR]
# BACKBONE names another backbone than the default.
# Without arguments it runs on the bundled scenes. STEPS=5000 trains as long as the paper; SHIFTS=0.08,0.02,0.66 takes
# published shifts instead of measured ones.
set -euo pipefail

data=${1:-scenes}
shift || true

features=$(unsupseg extract --dataset "$data" --split train ${BACKBONE:+--backbone "$BACKBONE"} "$@")
graph=$(unsupseg graph --features "$features")
model=$(unsupseg train --method stego --features "$features" --graph "$graph" \
    --set steps="${STEPS:-1000}" --set shifts="${SHIFTS:-auto}")
unsupseg predict --model "$model" --dataset "$data" --split val
unsupseg eval --model "$model" --dataset "$data" --split val
unsupseg eval --model "$model" --dataset "$data" --split val --crf
