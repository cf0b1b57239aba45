#!/usr/bin/env bash
# One process of a job: run the command, note its status for the batch script, and do not fall before the others have had time
# to write what they have to write (srun kills them all as soon as one has failed).
#
# TRILEMMA_START is a folder that all nodes see; TRILEMMA_STAGED, if set, is removed when this node's last process is done.
set -uo pipefail
told=
trap 'told=yes' USR1 USR2 TERM # the command gets them too, from SLURM: this shell lives on to note what became of it
trap : INT HUP

"$@"
status=$?
case $status in
  138 | 140 | 143) # the signal came before Python was ready to hear it: nothing is lost, start again
    [[ -n $told ]] && status=75 ;;
esac

note="$TRILEMMA_START/$SLURM_NODEID-$SLURM_LOCALID"
echo "$status" >"$note.part" && mv "$note.part" "$note"

# wait_for COUNT SECONDS NODE: until so many processes of a node, or of any, have noted their status
wait_for() {
  local deadline=$((SECONDS + $2)) notes
  while ((SECONDS < deadline)); do
    mapfile -t notes < <(compgen -G "$TRILEMMA_START/$3-*[0-9]")
    ((${#notes[@]} >= $1)) && return
    sleep 0.2
  done
}
((status == 0)) || wait_for "$SLURM_STEP_NUM_TASKS" "${TRILEMMA_GRACE:-60}" "*"
if [[ -n ${TRILEMMA_STAGED:-} && $SLURM_LOCALID == 0 ]]; then
  wait_for $((SLURM_STEP_NUM_TASKS / SLURM_STEP_NUM_NODES)) $((status == 0 ? 604800 : 1)) "$SLURM_NODEID"
  rm -rf -- "$TRILEMMA_STAGED"
fi
exit "$status"
