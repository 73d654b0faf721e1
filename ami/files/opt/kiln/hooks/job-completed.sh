#!/bin/bash
# Runs after each job, as the runner's user: the next one begins with an empty workspace and without containers of this
# one's. What can't be cleaned up is told; it does not fail a job that is done.
set -uo pipefail

if [[ -n "${GITHUB_WORKSPACE:-}" && -d "$GITHUB_WORKSPACE" ]]; then
  find "$GITHUB_WORKSPACE" -mindepth 1 -delete || echo '::warning::files of another user stay in the workspace'
fi

if command -v docker >/dev/null && docker info >/dev/null 2>&1; then
  mapfile -t containers < <(docker ps --all --quiet)
  if ((${#containers[@]})); then
    docker rm --force --volumes "${containers[@]}" >/dev/null || echo '::warning::containers of the job stay'
  fi
  docker volume prune --force >/dev/null || true
  docker network prune --force >/dev/null || true
fi
exit 0
