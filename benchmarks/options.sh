#!/usr/bin/env bash
# Options of PriMaPs-EM and STEGO beside their defaults and k-means, on one data set: start and length of EM, how masks
# are made, shifts and centring of STEGO. Fitted on train, scored on val without the CRF; the sharpness of PriMaPs-EM's
# scores (alpha), which changes nothing before it, with the CRF.
#
#   SEEDS="0 1" STEGO_STEPS=400 benchmarks/options.sh DATASET [options of extract, e.g. --root DIR --size 192]
#
# Prints the folder of each evaluation as it is made, then two tables. What is there already is not made again.
set -euo pipefail

data=${1:?usage: options.sh DATASET [extract options]}
shift
plain=() refined=()

score() {
    plain+=("$(unsupseg eval --model "$1" --dataset "$data" --split val --no-crf --sheet 0)")
    echo "${plain[-1]}"
}

score_with_crf() {
    refined+=("$(unsupseg eval --model "$1" --dataset "$data" --split val --crf --sheet 0)")
    echo "${refined[-1]}"
}

features=$(unsupseg extract --dataset "$data" --split train "$@")
graph=$(unsupseg graph --features "$features")
masks=$(unsupseg pseudolabel --features "$features" --method primaps)
for seed in ${SEEDS:-0 1}; do
    clusters=$(unsupseg pseudolabel --features "$features" --method kmeans --seed "$seed")
    kmeans=$(unsupseg train --pseudolabels "$clusters" --seed "$seed")
    score "$kmeans"
    score_with_crf "$kmeans"
    for options in "" "--set epochs=1" "--set epochs=50" "--set init=pca" "--set init=pca --set epochs=50"; do
        # shellcheck disable=SC2086 - several words
        score "$(unsupseg train --pseudolabels "$masks" --seed "$seed" $options)"
    done
    for option in center=none center=image crf=false; do
        others=$(unsupseg pseudolabel --features "$features" --method primaps --set "$option")
        score "$(unsupseg train --pseudolabels "$others" --seed "$seed")"
    done
    for alpha in 0 4; do
        score_with_crf "$(unsupseg train --pseudolabels "$masks" --seed "$seed" --set "alpha=$alpha")"
    done
    for option in shifts=auto shifts=0.08,0.02,0.66 pointwise=false; do
        score "$(unsupseg train --method stego --features "$features" --graph "$graph" --seed "$seed" \
            --set "steps=${STEGO_STEPS:-400}" --set "$option")"
    done
done
unsupseg compare "${plain[@]}"
unsupseg compare "${refined[@]}"
