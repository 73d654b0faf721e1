#!/bin/bash
# What the Systems Manager's agent is on an instance: runs the scripts that come by a port of the machine's, as root.
# A line holds its bound in seconds and a script, in base64; the answer is a line too: its exit code, and in base64 what
# it said.
exec 3<>/dev/virtio-ports/agent
while read -r seconds script <&3; do
  code=0
  said="$(
    timeout --kill-after=5 "$seconds" bash -c "$(base64 --decode <<<"$script")" </dev/null 2>&1 3>&- | base64 --wrap=0
    exit "${PIPESTATUS[0]}"
  )" || code=$?
  printf '%s %s\n' "$code" "$said" >&3
done
