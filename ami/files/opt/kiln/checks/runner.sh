#!/bin/bash
# runner.sh DIRECTORY VERSION: does the runner in that directory run here, and is it that release?
#
# Its programs are started, and what they want of the C and C++ libraries is compared with what is installed: a Node that
# asks for a newer glibc than the image has would show only when the first JavaScript action fails.
set -uo pipefail

directory="$1"
version="$2"
failed=0

wrong() {
  echo "WRONG $*" >&2
  failed=1
}

# By the loader's own account: each version of a symbol that a file asks for (GLIBC_2.28, GLIBCXX_3.4.26) and where it is
# found. What is static or a script asks for none.
asked() {
  ldd -v "$1" 2>/dev/null | sed -n 's/^[[:space:]]*\([^ ]*\) (\([A-Z]*_[0-9.]*\)) => \(.*\)$/\2 \3/p'
}

shopt -s nullglob
# Alpine's Node is for job containers of Alpine, and does not run here.
nodes=("$directory"/externals/node[0-9]*[0-9]/bin/node)
programs=("$directory/bin/Runner.Listener" "$directory/bin/Runner.Worker" "${nodes[@]}")
glibc="$(getconf GNU_LIBC_VERSION)"

((${#nodes[@]})) || wrong "there is no externals/node*/bin/node in $directory"
for file in "${programs[@]}" "$directory"/bin/*.so; do
  [[ -e "$file" ]] || continue
  missing="$(asked "$file" | sed -n 's/ not found$//p' | sort --unique --version-sort | tr '\n' ' ')"
  if [[ -n "$missing" ]]; then
    wrong "$file asks for ${missing% }; the image has $glibc"
  else
    newest="$(asked "$file" | sed -n 's/^\(GLIBC_[0-9.]*\) .*/\1/p' | sort --version-sort | tail -n 1)"
    echo "ok    $file asks for ${newest:-no glibc}; the image has $glibc"
  fi
done

# As the user whose folder for logs it is: every start writes there, and one of root's would leave a log that keeps the user
# out. Nothing of this one stays.
as_user() {
  if ((EUID == 0)); then
    setpriv --reuid="$(stat --format %u "$directory/_diag")" --regid="$(stat --format %g "$directory/_diag")" \
      --clear-groups -- "$@"
  else
    "$@"
  fi
}

complaint="$(mktemp)"
if [[ ! -d "$directory/_diag" ]]; then
  wrong "$directory has no folder _diag for the runner's logs"
elif ! found="$(as_user "$directory/bin/Runner.Listener" --version 2>"$complaint")"; then
  wrong "bin/Runner.Listener does not run: $found $(cat "$complaint")"
elif [[ "$found" != "$version" ]]; then
  wrong "bin/Runner.Listener is $found, not $version"
else
  echo "ok    bin/Runner.Listener is $found"
fi
rm -f "$complaint"
find "$directory/_diag" -mindepth 1 -delete || wrong "$directory/_diag can't be emptied"
for node in "${nodes[@]}"; do
  major="${node%/bin/node}"
  major="${major##*/node}"
  if ! found="$("$node" --version 2>&1)"; then
    wrong "externals/node$major/bin/node does not run: $found"
  elif [[ "$found" != "v$major."* ]]; then
    wrong "externals/node$major/bin/node is $found"
  # There have been builds that say their version and run no script (nodejs/unofficial-builds#185).
  elif ! told="$("$node" "${BASH_SOURCE[0]%/*}/node.js" 2>&1)" || [[ "$told" != 'crypto and TLS work' ]]; then
    wrong "externals/node$major/bin/node, which is $found, runs no script: $told"
  else
    echo "ok    externals/node$major/bin/node is $found: $told"
  fi
done
exit "$failed"
