#!/bin/sh
# Everything that is checked without running it. All of it runs, then the verdict.
set -u
cd "$(dirname "$0")/.." || exit 2
python=.venv/bin/python
failed=

check() {
    name=$1
    shift
    echo "== $name"
    timeout 600 "$@" || failed="$failed $name"
}

check format "$python" -m ruff format --check .
check ruff "$python" -m ruff check .
check mypy "$python" -m mypy
check mypy-tests "$python" -m mypy tests scripts
check imports .venv/bin/lint-imports --no-logo
if command -v shellcheck >/dev/null 2>&1; then
    check shell shellcheck --external-sources --check-sourced --source-path=SCRIPTDIR \
        scripts/*.sh scripts/clean_room_check scripts/clean_room/*.sh .ci/run
else
    echo "== shell: shellcheck is not installed, the shell scripts are not read"
    [ -z "${CI:-}" ] || failed="$failed shell"
fi

[ -z "$failed" ] || { echo "lint failed:$failed" >&2; exit 1; }
