#!/usr/bin/env bash
# MaskDistill by hand: masks, their clusters, a first model, the masks that it is sure of, the final model.
# Usage: maskdistill.sh [DATASET_OR_FOLDER] [more options of extract, e.g. --root DIR]
# BACKBONE names another backbone than the default.
# Without arguments it runs on the bundled scenes, whose every pixel belongs to something: PriMaPs' proposals are the masks, and
# no class is the background. For images of objects MASKS=objects takes MaskDistill's own masks, with class 0 as background;
# give CLASSES one more for it. The folder of each step's pseudo-labels holds sheet.png, that of the clusters classes.png too.
set -euo pipefail

data=${1:-scenes}
shift || true
classes=${CLASSES:+--classes $CLASSES}
step="unsupseg pseudolabel --method maskdistill --part"

features=$(unsupseg extract --dataset "$data" --split train --keep patch,key,cls_query ${BACKBONE:+--backbone "$BACKBONE"} "$@")
if [ "${MASKS:-proposals}" = objects ]; then
    masks=$($step masks --features "$features")
    ground="--set background=true"
else
    masks=$(unsupseg pseudolabel --features "$features" --method primaps)
    ground="--set background=false"
fi
clusters=$($step clusters --pseudolabels "$masks" $classes $ground)
train="unsupseg train --method maskdistill $classes $ground --set epochs=${EPOCHS:-20}"
initial=$($train --pseudolabels "$clusters")
sure=$($step filter --pseudolabels "$clusters" --model "$initial" $ground)
final=$($train --pseudolabels "$sure")
unsupseg eval --model "$final" --dataset "$data" --split val
