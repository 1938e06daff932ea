#!/usr/bin/env bash
# k-means and spectral clustering, on tokens as they are and without the directions of their place, with and without the CRF.
# Fitted on train; --split val for choices.
#
#   benchmarks/conditioning.sh DATASET SPLIT CLASSES [options of extract, e.g. --root DIR --size 224]
#
# BACKBONE and WEIGHTS: of the features; SEEDS="0 1 2"; DEBIAS="0 20". Prints a table. What is there already is not made again.
set -euo pipefail

usage="usage: conditioning.sh DATASET SPLIT CLASSES [extract options]"
data=${1:?$usage}
split=${2:?$usage}
classes=${3:?$usage}
shift 3
read -ra seeds <<<"${SEEDS:-0 1 2}"
read -ra counts <<<"${DEBIAS:-0 20}"
backbone=(${BACKBONE:+--backbone "$BACKBONE"} ${WEIGHTS:+--weights "$WEIGHTS"})
evaluations=()
for count in "${counts[@]}"; do
    views=(--keep patch --debias "$count" "${backbone[@]}" "$@")
    features=$(unsupseg extract --dataset "$data" --split train "${views[@]}")
    scored=$(unsupseg extract --dataset "$data" --split "$split" "${views[@]}")
    for seed in "${seeds[@]}"; do
        for method in kmeans spectral; do
            labels=$(unsupseg pseudolabel --features "$features" --method "$method" --classes "$classes" --seed "$seed")
            model=$(unsupseg train --pseudolabels "$labels" --seed "$seed")
            for crf in --no-crf --crf; do
                evaluations+=("$(unsupseg eval --model "$model" --features "$scored" "$crf" --sheet 12)")
            done
        done
    done
done
unsupseg compare "${evaluations[@]}"
