#!/usr/bin/env bash
# Reproduce a published table, or one pair of it, and put the result beside the published scores.
#
#     scripts/reproduce.sh kdzoo_cifar10_r110_r20 seeds=5
#     scripts/reproduce.sh crd_cifar100 pair=wrn_40_2-wrn_16_2 seeds=3 budget=short
#     scripts/reproduce.sh kdzoo_cifar10_r20_r20 seeds=3 dataset=image_folder dataset.root=FOLDER
#
# Tables are the files of conf/table. seeds=N is seed=0,...,N-1; budget=smoke|short|full scales the epochs; everything else goes to
# kdrun as it is (method=kd,rkd for some rows, hydra/launcher=joblib). Started again, it goes on where it was.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2; }
name=$1 && shift
overrides=()
if [[ $name =~ ^(.+)_r([0-9]+)_r([0-9]+)$ ]]; then
  name=${BASH_REMATCH[1]}
  overrides+=("pair=resnet${BASH_REMATCH[2]}-resnet${BASH_REMATCH[3]}")
fi
seeds=1 outputs=outputs images=published
for argument in "$@"; do
  case $argument in
    seeds=*) seeds=${argument#seeds=} ;;
    *) overrides+=("$argument") ;;
  esac
  case $argument in
    outputs=*) outputs=${argument#outputs=} ;;
    dataset=*) images=others ;;
  esac
done
status=0
kdrun -m "table=$name" "seed=$(seq -s, 0 $((seeds - 1)))" "${overrides[@]}" || status=$?
[ $status -eq 0 ] || [ $status -eq 3 ] || exit $status
if [ $images = published ]; then # scores on other images do not compare
  kdrun report "$outputs/runs" --against "$name"
else
  kdrun report "$outputs/runs"
fi
exit $status
