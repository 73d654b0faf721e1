#!/bin/bash
# Runs after each job, as the runner's user. Root's side, kiln-bootstrap, ends what the job has left running, and removes its
# containers and files, root's own too. What can't be removed is reported; it does not fail a job that is done.
root="${BASH_SOURCE[0]%/opt/kiln/hooks/*}"
exec "$root/usr/local/bin/kiln-bootstrap" --root "$root/" between-jobs completed
