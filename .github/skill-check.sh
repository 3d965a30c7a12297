#!/usr/bin/env bash
# What .github/actions/skill-check runs: overlapkit skill check, with the action's inputs as variables.
set -euo pipefail

source=$(cd "$ACTION/../../.." && pwd)
read -r -a paths <<< "${PATHS:-.}"
options=(--format "${FORMAT:-github}")
[ -z "${ROOT:-}" ] || options+=(--root "$ROOT")
[ "${COLLECT:-false}" != true ] || options+=(--collect)

check() {
  uvx --quiet --from "$source" overlapkit skill check "${options[@]}" -- "${paths[@]}"
}

if [ -z "${OUTPUT:-}" ]; then
  check
else
  # The status is that of the check, and the file is there with it.
  check | tee "$OUTPUT"
fi
