#!/bin/sh
# Makes this clone ready to run. POSIX sh: a fresh machine has nothing better yet.
#
#   scripts/setup.sh demo    what `make demo` needs
#   scripts/setup.sh test    and what the tests need: `make setup`
#   scripts/setup.sh lint    the Python environment alone, with the developers' tools
#   scripts/setup.sh bench   what the benchmarks compare with, besides all that
#
# As root it installs missing distribution packages; as anyone else it says which. It writes to
# .venv/ and build/ only. How long it took stands in build/setup-times.json, downloads apart.
# Exit: 0 ready; 2 something is missing, and the last lines say what to do.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
build=$root/build
venv=$root/.venv

say() { printf '%s\n' "$*" >&2; }

# shellcheck source=setup/timing.sh
. "$here/setup/timing.sh"
# shellcheck source=setup/system_packages.sh
. "$here/setup/system_packages.sh"
# shellcheck source=setup/sandbox_check.sh
. "$here/setup/sandbox_check.sh"
# shellcheck source=setup/python_env.sh
. "$here/setup/python_env.sh"
# shellcheck source=setup/node_modules.sh
. "$here/setup/node_modules.sh"

report_times() {
    printf '{"downloads_s": %s, "setup_s": %s}\n' "$(seconds "$downloads_ms")" "$(seconds "$setup_ms")" \
        >"$build/setup-times.json.new"
    mv "$build/setup-times.json.new" "$build/setup-times.json"
    [ "$((downloads_ms + setup_ms))" -eq 0 ] ||
        say "Ready: downloads $(seconds "$downloads_ms") s, set-up $(seconds "$setup_ms") s${setup_note:-}."
}

mkdir -p "$build"
# Two runs at once would share one .venv: the second waits for the first.
if command -v flock >/dev/null 2>&1; then
    exec 9>"$build/setup.lock"
    if ! flock -w 1800 9; then
        say "Another set-up of this clone has been running for half an hour. Stop it, then try again."
        exit 2
    fi
fi

case ${1:-} in
    demo)
        require_packages demo
        require_sandbox
        require_python_env runtime
        ;;
    test)
        require_packages demo test
        require_sandbox
        require_python_env develop
        ;;
    lint)
        require_python_env develop
        ;;
    bench)
        require_packages demo bench
        require_sandbox
        require_python_env bench
        require_node_modules
        ;;
    *)
        say "usage: $0 demo|test|lint|bench"
        exit 2
        ;;
esac
report_times
