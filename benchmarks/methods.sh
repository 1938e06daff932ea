#!/usr/bin/env bash
# The methods beside each other on one data set: k-means, spectral clustering, PriMaPs-EM, STEGO, PriMaPs-EM on STEGO's codes, TransFGU,
# MaskDistill and context-aware clustering, with and without the CRF. Fitted on train; --split val for choices, the test
# split is scored once per table.
#
#   benchmarks/methods.sh DATASET SPLIT [options of extract, e.g. --root DIR --size 192]
#
# BACKBONE and WEIGHTS: of the features; SEEDS="0 1 2"; OBJECTS=1 where images show objects before a background: then
# MaskDistill takes its own masks, with class 0 as background, else PriMaPs' proposals; PYRAMID: options of the views of
# context-aware clustering. Prints the folder of each evaluation as it is made, then a table. What is there already is not
# made again.
set -euo pipefail

data=${1:?usage: methods.sh DATASET SPLIT [extract options]}
split=${2:?usage: methods.sh DATASET SPLIT [extract options]}
shift 2
read -ra views <<<"${PYRAMID:-}"
read -ra seeds <<<"${SEEDS:-0 1 2}"
backbone=(${BACKBONE:+--backbone "$BACKBONE"} ${WEIGHTS:+--weights "$WEIGHTS"})
evaluations=()

score() {
    for crf in --no-crf --crf; do
        evaluations+=("$(unsupseg eval --model "$1" --features "$scored" "$crf" --sheet 12)")
        echo "${evaluations[-1]}"
    done
}

features=$(unsupseg extract --dataset "$data" --split train --keep patch,cls,pooled,attention,key,cls_query "${backbone[@]}" "$@")
scored=$(unsupseg extract --dataset "$data" --split "$split" --keep patch,cls "${backbone[@]}" "$@")
graph=$(unsupseg graph --features "$features")
proposals=$(unsupseg pseudolabel --features "$features" --method primaps)
if [ "${OBJECTS:-}" ]; then
    objects=$(unsupseg pseudolabel --features "$features" --method maskdistill --part masks)
    anchors=(--features "$features") ground=background=true
else
    objects=$proposals anchors=(--foreground-share 0) ground=background=false
fi
anchors=$(unsupseg extract --dataset "$data" --split train --regions anchors --embed masked "${anchors[@]}" "${backbone[@]}" "$@")
pyramid=$(unsupseg extract --dataset "$data" --split train --regions pyramid --keep cls,patch "${backbone[@]}" "$@" "${views[@]}")
for seed in "${seeds[@]}"; do
    labels=(unsupseg pseudolabel --features "$features" --seed "$seed")
    train=(unsupseg train --seed "$seed")
    score "$("${train[@]}" --pseudolabels "$("${labels[@]}" --method kmeans)")"
    score "$("${train[@]}" --pseudolabels "$("${labels[@]}" --method spectral)")"
    score "$("${train[@]}" --pseudolabels "$proposals")"
    stego=$("${train[@]}" --method stego --features "$features" --graph "$graph" --set steps="${STEGO_STEPS:-1000}")
    score "$stego"
    codes=$(unsupseg extract --dataset "$data" --split train --model "$stego" "$@")
    score "$("${train[@]}" --pseudolabels "$(unsupseg pseudolabel --features "$codes" --method primaps)")"
    maps=$("${labels[@]}" --method transfgu --regions "$anchors" --set mass=1.0)
    score "$("${train[@]}" --pseudolabels "$maps" --set cycles=1)"
    score "$("${train[@]}" --pseudolabels "$("${labels[@]}" --method context --regions "$pyramid")")"
    distil=(--method maskdistill --set "$ground")
    clusters=$("${labels[@]}" "${distil[@]}" --part clusters --pseudolabels "$objects")
    initial=$("${train[@]}" "${distil[@]}" --pseudolabels "$clusters")
    score "$initial"
    sure=$("${labels[@]}" "${distil[@]}" --part filter --pseudolabels "$clusters" --model "$initial")
    score "$("${train[@]}" "${distil[@]}" --pseudolabels "$sure")"
done
unsupseg compare "${evaluations[@]}"
