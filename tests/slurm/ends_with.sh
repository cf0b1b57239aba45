#!/usr/bin/env bash
# ends_with.sh STATUS [COMMAND...]: stands in for Python where a test is about what the batch script makes of a status.
echo "ends with $1"
exit "$1"
