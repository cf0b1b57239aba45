# What all batch scripts do: read the site, start the processes, and requeue the job where that helps. Sourced by them in the
# repository's root, on the first node of the job.
# shellcheck shell=bash
set -uo pipefail
. slurm/names.sh
. slurm/fabric.sh

# The job's own name for scontrol: 17, or 17_3 for an element of an array.
JOB=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
JOB=${JOB:-$SLURM_JOB_ID}

# A warning that comes before there is a process to hear it.
warned=
trap 'warned=yes' USR1 USR2

# Site, modules, network; then PYTHON holds the interpreter and CPUS the cores of a process.
start_job() {
  local site=${TRILEMMA_SITE:-local} module tasks
  [[ -f slurm/sites/$site.env ]] || die "TRILEMMA_SITE=$site: there is no slurm/sites/$site.env"
  # shellcheck source=/dev/null
  . "slurm/sites/$site.env"
  export PS1=${PS1-} # hooks of Lmod and conda read it, and would end a script under set -u
  for module in ${TRILEMMA_MODULES:-}; do
    command -v module >/dev/null || die "slurm/sites/$site.env names modules, and this node has no module command"
    set +u
    module load "$module" || die "module load $module failed: module avail lists what there is"
    set -u
  done
  if [[ -n ${TRILEMMA_PYTHON:-} ]]; then
    read -ra PYTHON <<<"$TRILEMMA_PYTHON"
  elif [[ -x .venv/bin/python ]]; then
    PYTHON=("$PWD/.venv/bin/python")
  else
    die "there is no $PWD/.venv (make setup makes it): or set TRILEMMA_PYTHON in slurm/sites/$site.env"
  fi
  tasks=$((${SLURM_NTASKS_PER_NODE:-1} > 0 ? ${SLURM_NTASKS_PER_NODE:-1} : 1))
  CPUS=${SLURM_CPUS_PER_TASK:-$((SLURM_CPUS_ON_NODE / tasks > 0 ? SLURM_CPUS_ON_NODE / tasks : 1))}
  unset SLURM_CPUS_PER_GPU # srun takes it or --cpus-per-task, not both
  if [[ -n ${SLURM_GPUS_ON_NODE:-} && $SLURM_GPUS_ON_NODE != "$tasks" ]]; then
    echo "warning: $SLURM_GPUS_ON_NODE GPUs and $tasks processes a node: one process uses one GPU (--ntasks-per-node, --gpus-per-node)"
  fi
  MASTER_ADDR=${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}
  export MASTER_ADDR TRILEMMA_REQUEUE=script PYTHONUNBUFFERED=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-$CPUS}"
  echo "job $JOB, start $((${SLURM_RESTART_COUNT:-0} + 1)): $SLURM_JOB_NUM_NODES x $tasks processes of $CPUS cores on $SLURM_JOB_NODELIST, site $site"
  fabric
}

# Copy TRILEMMA_STAGE to each node's own disk, if the site or the user names it; TRILEMMA_STAGED is where it lies then.
stage() {
  [[ -n ${TRILEMMA_STAGE:-} ]] || return 0
  export USER=${USER:-$(id -un)}
  TRILEMMA_STAGED=${TRILEMMA_LOCAL:-${SLURM_TMPDIR:-${TMPDIR:-/tmp}}}/trilemma-$USER-$SLURM_JOB_ID
  export TRILEMMA_STAGED
  trap 'rm -rf -- "$TRILEMMA_STAGED"' EXIT # of this node; rank.sh sees to the others
  srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --kill-on-bad-exit=1 \
    bash slurm/stage.sh "$TRILEMMA_STAGE" "$TRILEMMA_STAGED" || die "the data could not be staged"
}

# launch STATE PROGRESS COMMAND...: run the command in every process of the job, and requeue the job if it was stopped.
#   STATE: folder for what the scripts themselves remember of this work.
#   PROGRESS: pattern of files; a newer last one means that the work has gone on. Empty where that is not to be seen from here:
#     only abnormal ends count then.
launch() {
  local state=$1 progress=$2 status srun
  shift 2
  mkdir -p "$state" || die "cannot write $state: choose another place with paths.output_dir=..."
  export TRILEMMA_START="$state/$JOB.${SLURM_RESTART_COUNT:-0}"
  rm -rf "$TRILEMMA_START"
  mkdir "$TRILEMMA_START" || die "cannot write $state: choose another place with paths.output_dir=..."

  if [[ -n $warned ]]; then
    _requeue 75 "$state" "$progress"
    exit 75
  fi
  # SLURM signals the processes, this shell, or both, as it pleases: what reaches only this shell is handed on.
  trap 'scancel --signal=USR1 "$SLURM_JOB_ID"' USR1
  trap 'scancel --signal=USR2 "$SLURM_JOB_ID"' USR2
  trap : TERM INT HUP CONT
  srun --kill-on-bad-exit=1 --wait=0 --cpus-per-task="$CPUS" bash slurm/rank.sh "$@" &
  srun=$!
  while wait "$srun"; status=$?; kill -0 "$srun" 2>/dev/null; do :; done # a trap ends wait, not srun

  status=$(_verdict "$status")
  rm -rf "$TRILEMMA_START"
  case $status in
    0 | 2 | 130) rmdir -p --ignore-fail-on-non-empty "$state" 2>/dev/null ;; # nothing to remember
    *) _requeue "$status" "$state" "$progress" ;;
  esac
  exit "$status"
}

# What the processes' own statuses come to: srun knows only the greatest, which is often that of one it killed itself.
_verdict() {
  local notes status
  notes=" $(cat "$TRILEMMA_START"/*-*[0-9] 2>/dev/null | tr '\n' ' ')"
  for status in 2 130 75; do
    [[ $notes == *" $status "* ]] && echo "$status" && return
  done
  echo "$1"
}

_requeue() {
  local status=$1 log="$2/restarts" newest job_state count
  newest=$(_newest "$3")
  echo "$JOB ${SLURM_RESTART_COUNT:-0} $status $newest $(date '+%F %T')" >>"$log"

  job_state=$(scontrol show job "$JOB" -o)
  case $job_state in
    *JobState=RUNNING*) ;;
    *JobState=COMPLETING*Reason=TimeLimit*) ;; # the warning came too late, or was not heard
    *) # cancelled, or SLURM requeues it already
      echo "job $JOB stopped with status $status; SLURM ended it, and starts it again if it means to"
      return ;;
  esac
  count=$(_restarts "$log" "$newest")
  if ((count > ${TRILEMMA_MAX_RESTARTS:-5})); then
    echo "error: job $JOB failed $count times (status $status; $log): not started again. The same command goes on when it is fixed" >&2
    return
  fi
  if scontrol requeue "$JOB"; then
    echo "job $JOB stopped with status $status and is requeued; newest checkpoint: $newest"
  else
    echo "error: job $JOB could not be requeued (--no-requeue?): submit the same command again" >&2
  fi
}

# Abnormal ends of this job so far; or, if they are more, stops in a row without progress, whatever their status.
_restarts() {
  awk -v job="$JOB" -v newest="$2" '
    $1 == job { abnormal += $3 != 75; idle = $4 == newest && newest != "unseen" ? idle + 1 : 0 }
    END { print (abnormal > idle - 1 ? abnormal : idle - 1) + 0 }' "$1"
}

# The name of the last file of a pattern.
_newest() {
  local file
  [[ -n $1 ]] || { echo unseen && return; }
  file=$(compgen -G "$1" | sort | tail -n 1)
  basename "${file:-none}"
}

# train DEFAULT_ID OVERRIDES...: train.py in a run directory that a requeue finds again.
train() {
  local run_id=$1 folder
  shift
  [[ -z ${TRILEMMA_OUTPUT_DIR:-} ]] || set -- "paths.output_dir='$TRILEMMA_OUTPUT_DIR'" "$@"
  [[ -z ${TRILEMMA_DATA_DIR:-} ]] || set -- "paths.data_dir='$TRILEMMA_DATA_DIR'" "$@"
  folder=$(run_dir "$run_id" "$@") || exit
  run_id=$(override run.id "$run_id" "$@") || exit
  stage
  [[ -z ${TRILEMMA_STAGED:-} ]] || set -- "$@" "paths.data_dir='$TRILEMMA_STAGED'"
  launch "$folder/slurm" "$folder/checkpoints/step-*.ckpt" "${PYTHON[@]}" train.py "$@" "run.id=$run_id"
}

# work SCRIPT OVERRIDES...: sample.py or evaluate.py, which find what they have written by themselves.
work() {
  local script=$1
  shift
  stage
  [[ -z ${TRILEMMA_STAGED:-} ]] || set -- "$@" "data.root='$TRILEMMA_STAGED'"
  launch "${TRILEMMA_OUTPUT_DIR:-outputs}/slurm/$SLURM_JOB_NAME-$JOB" "" "${PYTHON[@]}" "$script" "$@"
}
