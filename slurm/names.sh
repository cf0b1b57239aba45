# Where a run lies, from the overrides on its command line. Sourced.
# shellcheck shell=bash

die() {
  echo "error: $*" >&2
  exit 2
}

# The words of a line, as a shell would cut it (quotes hold them together), one a line; nothing in it is executed.
words() {
  xargs -r -n1 printf '%s\n' <<<"$1"
}

# override KEY DEFAULT OVERRIDES...: the value that KEY gets; the last one counts, as for Hydra.
override() {
  local key=$1 value=$2 word
  shift 2
  for word in "$@"; do
    [[ $word == "$key="* ]] && value=${word#*=}
  done
  [[ $value == \'*\' || $value == \"*\" ]] && value=${value:1:-1}
  # shellcheck disable=SC2016  # Hydra's ${...} is meant
  [[ $value == *'${'* ]] && die "$key=$value: the batch scripts need a plain value here, without \${...}"
  echo "$value"
}

# run_dir DEFAULT_ID OVERRIDES...: the run directory of train.py under these overrides.
run_dir() {
  local id experiment output
  id=$(override run.id "$1" "${@:2}") || return
  experiment=$(override experiment custom "${@:2}") || return
  experiment=$(override experiment_name "$experiment" "${@:2}") || return
  output=$(override paths.output_dir "${TRILEMMA_OUTPUT_DIR:-outputs}" "${@:2}") || return
  echo "$output/$experiment/$id"
}
