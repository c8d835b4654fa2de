#!/usr/bin/env bash
# Reproduce a published table, or one pair of it, and put the result beside the published scores.
#
#     scripts/reproduce.sh kdzoo_cifar10_r110_r20 seeds=5
#     scripts/reproduce.sh crd_cifar100 pair=wrn_40_2-wrn_16_2 seeds=3 budget=short
#     scripts/reproduce.sh kdzoo_cifar10_r20_r20 seeds=3 dataset=image_folder dataset.root=FOLDER
#
# Tables are the files of conf/table; TABLE_r56_r20 or _r32x4_r8x4 is its pair=resnet56-resnet20 or pair=resnet32x4-resnet8x4.
# seeds=N is seed=0,...,N-1; budget=smoke|short|full scales the epochs; everything else goes to kdrun as it is (method=kd,rkd for some
# rows, hydra/launcher=joblib). Started again, it goes on where it was. Scores of other images or fewer epochs are not compared.
set -euo pipefail
usage() { sed -n '2,10s/^# \{0,1\}//p' "$0"; }
wrong() {
  echo "reproduce.sh: $1" >&2
  exit 2
}
case ${1:-} in
  "") usage >&2 && exit 2 ;;
  -h | --help) usage && exit 0 ;;
esac
name=$1 && shift
overrides=()
if [[ $name =~ ^(.+)_r([0-9]+(x4)?)_r([0-9]+(x4)?)$ ]]; then
  name=${BASH_REMATCH[1]}
  overrides+=("pair=resnet${BASH_REMATCH[2]}-resnet${BASH_REMATCH[4]}")
fi
seeds=1 outputs=outputs comparable=yes
for argument in "$@"; do
  case $argument in
    seeds=*) seeds=${argument#seeds=} ;;
    seed=*) wrong "$argument: the seeds are said with seeds=N, as seeds=3 for 0, 1 and 2" ;;
    *) overrides+=("$argument") ;;
  esac
  case $argument in
    outputs=*) outputs=${argument#outputs=} ;;
    dataset=* | budget=short | budget=smoke) comparable=no ;;
  esac
done
[[ $seeds =~ ^[1-9][0-9]*$ ]] || wrong "seeds=$seeds is not a whole number above 0, as seeds=3"
status=0
kdrun -m "table=$name" "seed=$(seq -s, 0 $((seeds - 1)))" "${overrides[@]}" || status=$?
[ $status -eq 0 ] || [ $status -eq 3 ] || exit $status
if [ $comparable = yes ]; then
  kdrun report "$outputs/runs" --against "$name"
fi
exit $status
