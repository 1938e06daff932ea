#!/usr/bin/env bash
# Spectral clustering across images by hand. Usage: spectral.sh [DATASET_OR_FOLDER] [more options of extract, e.g. --root DIR]
# BACKBONE names another backbone than the default.
# Without arguments it runs on the bundled scenes. Each command prints the path of its artifact.
set -euo pipefail

data=${1:-scenes}
shift || true

features=$(unsupseg extract --dataset "$data" --split train ${BACKBONE:+--backbone "$BACKBONE"} "$@")
masks=$(unsupseg pseudolabel --features "$features" --method spectral)
model=$(unsupseg train --pseudolabels "$masks")
unsupseg predict --model "$model" --dataset "$data" --split val
unsupseg eval --model "$model" --dataset "$data" --split val
