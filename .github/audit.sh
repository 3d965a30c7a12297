#!/usr/bin/env bash
# What action.yml runs: overlapkit audit, with the action's inputs as variables.
set -euo pipefail

read -r -a folders <<< "${FOLDER:-.}"
options=(--format "${FORMAT:-github}")
[ -z "${WORLD_SIZE_OF_JOB:-}" ] || options+=(--world-size "$WORLD_SIZE_OF_JOB")
[ -z "${GPU:-}" ] || options+=(--gpu "$GPU")
[ -z "${CORE:-}" ] || options+=(--core "$CORE")
[ -z "${BRIDGE:-}" ] || options+=(--bridge "$BRIDGE")

audit() {
  uvx --quiet --from "$SOURCE" overlapkit audit "${options[@]}" -- "${folders[@]}"
}

if [ -z "${OUTPUT:-}" ]; then
  audit
else
  # The status is that of the audit, and the file is there with it.
  audit | tee "$OUTPUT"
fi
