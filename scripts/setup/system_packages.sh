# shellcheck shell=sh
# The distribution's packages: find what is missing, install it as root, or say how.

# require_packages LIST...: every package in setup/LIST-packages.txt is there afterwards, or exit 2
# with the command that installs what is missing.
require_packages() {
    missing=$(missing_packages "$@") || exit 2
    [ -n "$missing" ] || return 0
    if ! command -v apt-get >/dev/null 2>&1; then
        say "These are missing, here by their Debian names:"
        say ""
        say "    $missing"
        say ""
        say "Install them with your distribution's package manager, then run make again."
        exit 2
    fi
    if [ "$(id -u)" -ne 0 ]; then
        say "These packages are missing and only root can install them. Please run"
        say ""
        say "    sudo apt-get update"
        say "    sudo apt-get install --no-install-recommends $missing"
        say ""
        say "then run make again."
        exit 2
    fi
    say "apt packages: installing $missing"
    apt_log=$build/apt.log
    : >"$apt_log"
    # shellcheck disable=SC2086 # a list of names
    { timed downloads download_packages $missing && timed setup apt_get 1800 install $missing; } || apt_failed
    missing=$(missing_packages "$@")
    if [ -n "$missing" ]; then
        say "apt-get installed $missing, which still can't be used. Does PATH hold another one first?"
        exit 2
    fi
}

missing_packages() {
    missing_names=
    for list in "$@"; do
        while read -r package proof _why; do
            case $package in '' | '#'*) continue ;; esac
            is_there "$proof" || missing_names="$missing_names $package"
        done <"$here/setup/$list-packages.txt"
    done
    echo "${missing_names# }"
}

# is_there PROOF: one of the proofs between |; a file's name may be a pattern.
is_there() {
    case $1 in
        *'|'*) is_there "${1%%|*}" || is_there "${1#*|}" ;;
        command:*) command -v "${1#command:}" >/dev/null 2>&1 ;;
        file:*)
            # shellcheck disable=SC2086 # the pattern is to be expanded
            set -- ${1#file:}
            [ -e "$1" ]
            ;;
        module:*) python3 -c "import ${1#module:}" >/dev/null 2>&1 ;;
        *)
            say "No such proof: $1"
            return 1
            ;;
    esac
}

# A fresh machine has no lists, an old one lists of files that are gone: both want an update
# first. One that fails (another apt at work, a mirror in the middle of its own update) is
# repeated once.
download_packages() {
    apt_get 300 update || { sleep 10 && apt_get 300 update; } || return 1
    apt_get 1800 --download-only install "$@" ||
        { apt_get 300 update && apt_get 1800 --download-only install "$@"; }
}

# apt_get LIMIT_S ARGUMENT...: without questions, waiting up to 300 s for another apt's lock. What a
# package starts must not inherit our own lock (9). What brings a service (a database, a relay) must
# not start it here: tests start their own.
apt_get() {
    apt_limit_s=$1
    shift
    DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 SYSTEMD_OFFLINE=1 timeout "$apt_limit_s" \
        apt-get -qq -y --no-install-recommends \
        -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 -o Acquire::Retries=3 \
        "$@" </dev/null >>"$apt_log" 2>&1 9>&-
}

apt_failed() {
    say "apt-get failed. Its last words, of $apt_log:"
    tail -n 15 "$apt_log" | sed 's/^/    /' >&2
    say "Mend that (\`apt-get update\` shows most of it), then run make again."
    exit 2
}
