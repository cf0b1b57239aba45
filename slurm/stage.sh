#!/usr/bin/env bash
# Bring data to this node's own disk, once a node: stage.sh SOURCE TARGET. SOURCE is a tar archive or a folder.
set -euo pipefail
source=$1 target=$2
parent=$(dirname "$target")

# What a job that was killed outright left behind.
shopt -s nullglob
for old in "$parent/trilemma-$USER-"*; do
  [[ -n $(squeue --noheader --jobs="${old##*-}" 2>/dev/null) ]] || rm -rf -- "$old"
done

mkdir -p -- "$target"
if [[ -d $source ]]; then
  cp -R -- "$source"/. "$target"/
elif [[ -f $source ]]; then
  tar -xf "$source" -C "$target"
else
  echo "error: TRILEMMA_STAGE=$source: there is no such file or folder" >&2
  exit 2
fi
size=$(du -sh -- "$target" | cut -f 1)
echo "staged on $(hostname -s): $size from $source in $target"
if [[ $(findmnt -n -o FSTYPE -T "$target" 2>/dev/null) == tmpfs ]]; then
  echo "warning: $target lies in memory: its $size count against what the job may use (--mem)"
fi
