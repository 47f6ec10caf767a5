#!/bin/sh
# Runs benchmarks/NAME.py, or lists what there is.
set -eu
cd "$(dirname "$0")/.."
name=${1:-}
[ $# -eq 0 ] || shift
if [ -n "$name" ] && [ -f "benchmarks/$name.py" ]; then
    scripts/setup.sh demo
    exec .venv/bin/python "benchmarks/$name.py" "$@"
fi
[ -z "$name" ] || echo "There is no benchmark called $name." >&2
echo "usage: make bench NAME=..., one of:" >&2
for file in benchmarks/[a-z]*.py; do
    [ -f "$file" ] || { echo "    (none yet)" >&2; break; }
    echo "    $(basename "$file" .py)" >&2
done
exit 2
