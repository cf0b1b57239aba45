#!/usr/bin/env bash
# Codec, prior, evaluation: three jobs, each of which starts only if the one before it has succeeded.
#   slurm/pipeline.sh first --codec 'experiment=mnist/vqvae' --prior 'experiment=mnist/vq_diffusion' \
#       --evaluate 'num_images=2000 guidance.scale=2' -- --time=4:00:00
# The first word names the runs of codec and prior (run.id). Each option holds what train.py or evaluate.py is told; after -- come options of
# sbatch for all jobs. Without --codec the prior is a model that needs none.
# The same command repairs a pipeline of which a job failed: stages that are finished say so and end at once.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
. slurm/names.sh
usage="usage: slurm/pipeline.sh RUN_ID [--codec OVERRIDES] --prior OVERRIDES [--evaluate OVERRIDES] [-- SBATCH_OPTIONS]"

[[ ${1:-} == -h || ${1:-} == --help ]] && sed -n '2,8s/^# \?//p' "${BASH_SOURCE[0]}" && exit
run_id=${1:-}
[[ -n $run_id && $run_id != -* ]] || die "$usage"
shift
declare -A told=()
while (($#)) && [[ $1 != -- ]]; do
  [[ $1 =~ ^--(codec|prior|evaluate)$ ]] || die "unknown option $1; $usage"
  (($# >= 2)) || die "$1 needs its overrides in quotes; $usage"
  told[${1#--}]=$2
  shift 2
done
(($#)) && shift
[[ -n ${told[prior]:-} ]] || die "there is no --prior; $usage"

# cut STAGE: the words of a stage's overrides into the array `overrides`
cut() {
  local text
  text=$(words "${told[$1]}") || die "cannot read --$1 '${told[$1]}': see its quotes"
  overrides=()
  [[ -z $text ]] || mapfile -t overrides <<<"$text"
}

# submit STAGE TEMPLATE OVERRIDES...: a job that waits for the one before it
before=
submit() {
  local stage=$1 template=$2 job depends=()
  shift 2
  [[ -z $before ]] || depends=(--dependency="afterok:$before" --kill-on-invalid-dep=yes)
  job=$(sbatch --parsable --job-name="$run_id-$stage" "${depends[@]}" "${sbatch[@]}" "slurm/$template.sbatch" "$@") ||
    die "sbatch refused the $stage${before:+; cancel what was submitted with  scancel $before}"
  before=${job%%;*}
  printf '%-9s job %-8s %s\n' "$stage" "$before" "$*"
}

sbatch=("$@")
names=$run_id-codec,$run_id-prior,$run_id-evaluate
queued=$(squeue --noheader --user="$(id -un)" --name="$names" --format='%i (%j, %T)') || exit 1
[[ -z $queued ]] || die "this pipeline is in the queue already: $(paste -sd ' ' <<<"$queued"); wait for it or cancel it"

codec=()
if [[ -n ${told[codec]:-} ]]; then
  cut codec
  folder=$(run_dir "$run_id" "${overrides[@]}") || exit
  submit codec train "${overrides[@]}" "run.id=$run_id"
  codec=("codec.checkpoint='$folder/checkpoints/last.ckpt'")
fi
cut prior
folder=$(run_dir "$run_id" "${overrides[@]}") || exit
submit prior train "${codec[@]}" "${overrides[@]}" "run.id=$run_id"
if [[ -n ${told[evaluate]+yes} ]]; then
  cut evaluate
  submit evaluate evaluate "ckpt='$folder/checkpoints/last.ckpt'" "${overrides[@]}"
fi
echo "watch them with  squeue --me ; each writes slurm/logs/NAME-JOB.out"
