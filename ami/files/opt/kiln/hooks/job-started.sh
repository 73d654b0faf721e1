#!/bin/bash
# Runs before each job, as the runner's user. A job that would run out of disk halfway is failed at once, and says why.
set -euo pipefail

# KiB: room for a checkout and an image or two.
least=$((${KILN_LEAST_FREE_MIB:-2048} * 1024))

free() {
  df --output=avail -k "${RUNNER_WORKSPACE:-$PWD}" | tail -n 1 | tr -d ' '
}

if (($(free) < least)) && command -v docker >/dev/null; then
  echo 'the disk is nearly full: removing unused containers, images and volumes'
  docker system prune --all --force --volumes >/dev/null || true
fi
if (($(free) < least)); then
  echo "::error title=Disk nearly full::$(($(free) / 1024)) MiB are free on $(hostname), $((least / 1024)) are wanted"
  exit 1
fi
