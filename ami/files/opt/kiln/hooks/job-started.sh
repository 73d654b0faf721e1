#!/bin/bash
# Runs before each job, as the runner's user. Root's side, kiln-bootstrap, ends and removes what an earlier job has left, and looks
# whether there is room: a job that would run out of disk halfway fails at once, and says why.
root="${BASH_SOURCE[0]%/opt/kiln/hooks/*}"
exec "$root/usr/local/bin/kiln-bootstrap" --root "$root/" between-jobs started
