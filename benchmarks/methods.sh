#!/usr/bin/env bash
# The methods beside each other on one data set: k-means, PriMaPs-EM, STEGO and PriMaPs-EM on STEGO's codes, three
# seeds, with and without the CRF. Fitted on train; --split val for choices, the test split is scored once per table.
#
#   benchmarks/methods.sh DATASET SPLIT [options of extract, e.g. --root DIR --size 192]
#
# Prints the folder of each evaluation as it is made, then a table. What is there already is not made again.
set -euo pipefail

data=${1:?usage: methods.sh DATASET SPLIT [extract options]}
split=${2:?usage: methods.sh DATASET SPLIT [extract options]}
shift 2
evaluations=()

score() {
    for crf in --no-crf --crf; do
        evaluations+=("$(unsupseg eval --model "$1" --dataset "$data" --split "$split" "$crf" --sheet 12)")
        echo "${evaluations[-1]}"
    done
}

features=$(unsupseg extract --dataset "$data" --split train "$@")
graph=$(unsupseg graph --features "$features")
masks=$(unsupseg pseudolabel --features "$features" --method primaps)
for seed in 0 1 2; do
    clusters=$(unsupseg pseudolabel --features "$features" --method kmeans --seed "$seed")
    score "$(unsupseg train --pseudolabels "$clusters" --seed "$seed")"
    score "$(unsupseg train --pseudolabels "$masks" --seed "$seed")"
    stego=$(unsupseg train --method stego --features "$features" --graph "$graph" --seed "$seed" --set steps="${STEGO_STEPS:-1000}")
    score "$stego"
    codes=$(unsupseg extract --dataset "$data" --split train --model "$stego" "$@")
    masks_on_codes=$(unsupseg pseudolabel --features "$codes" --method primaps)
    score "$(unsupseg train --pseudolabels "$masks_on_codes" --seed "$seed")"
done
unsupseg compare "${evaluations[@]}"
