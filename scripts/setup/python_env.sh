# shellcheck shell=sh
# The virtual environment `.venv`, made by uv where it works, else by venv and pip.
#
# Versions are pinned by constraints.txt. A stamp holds the digest of everything that decides
# what is installed, so that a second run has nothing to do.

# require_python_env runtime|develop|bench: each holds what the one before holds.
require_python_env() {
    kind=$1
    wanted=$(digest_of_inputs)
    if works "$venv/bin/python" && [ "$(cat "$venv/.aegis-$kind" 2>/dev/null)" = "$wanted" ]; then
        return 0
    fi
    python=$(choose_python) || exit 2
    say "Python packages: installing into $venv"
    # Scripts in an environment name its path: one that was moved is made anew.
    [ "$(cat "$venv/.aegis-home" 2>/dev/null || echo "$venv")" = "$venv" ] || rm -rf "$venv"
    if ! { have_uv && timed setup install_by_uv; }; then
        install_by_pip
    fi
    echo "$venv" >"$venv/.aegis-home"
    for held in runtime develop bench; do
        echo "$wanted" >"$venv/.aegis-$held"
        [ "$held" = "$kind" ] && break
    done
}

digest_of_inputs() {
    { echo "$venv" && cat "$root/pyproject.toml" "$root/constraints.txt" "$here"/setup/python_env.sh; } | cksum
}

works() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

# The first that is new enough and that other users can run too, as builds do when root starts them
# (one below /root is not); for want of such a one, the first that is new enough.
choose_python() {
    for candidate in ${PYTHON:-} $(every_python); do
        works "$candidate" || continue
        if [ "$candidate" = "${PYTHON:-}" ] || others_can_run "$candidate"; then
            command -v "$candidate" && return 0
        fi
        fallback=${fallback:-$candidate}
    done
    [ -z "${fallback:-}" ] || { command -v "$fallback" && return 0; }
    say "Python 3.11 or newer is needed; here $(python3 --version 2>/dev/null || echo 'there is no python3')."
    say "If you have one that is not in PATH: make setup PYTHON=/where/it/is/bin/python3.12"
    return 1
}

# The Pythons of every folder in PATH: a version manager's may hide the system's.
every_python() {
    for name in python3 python3.14 python3.13 python3.12 python3.11; do
        (
            IFS=:
            for folder in $PATH; do
                [ ! -x "$folder/$name" ] || printf '%s\n' "$folder/$name"
            done
        )
    done
}

others_can_run() {
    [ "$(id -u)" -eq 0 ] || return 0
    "$1" -c 'if True:
        import os, sys
        path = os.path.realpath(sys._base_executable)
        while path != "/":
            if not os.stat(path).st_mode & 1:
                sys.exit(1)
            path = os.path.dirname(path)' >/dev/null 2>&1
}

have_uv() {
    [ "${AEGIS_SETUP_BY:-uv}" = uv ] && uv --version >/dev/null 2>&1
}

install_by_uv() {
    if ! works "$venv/bin/python"; then
        UV_PYTHON_DOWNLOADS=never timeout 60 uv venv -q --clear --python "$python" "$venv" || return 1
    fi
    write_requirements &&
        timeout 900 uv pip install -q --python "$venv/bin/python" \
            -c "$root/constraints.txt" -r "$build/requirements.txt" &&
        timeout 120 uv pip install -q --python "$venv/bin/python" \
            --no-deps --no-build-isolation -e "$root" && {
        setup_note=", uv's downloads among it"
        return 0
    }
    say "uv could not do it; trying pip."
    return 1
}

install_by_pip() {
    timed setup make_venv || python_failed
    write_requirements || python_failed
    timed downloads fetch_wheels || python_failed
    timed setup install_wheels || python_failed
}

make_venv() {
    if works "$venv/bin/python"; then
        "$venv/bin/python" -m pip --version >/dev/null 2>&1 && return 0
        timeout 120 "$venv/bin/python" -m ensurepip >/dev/null 2>&1 && return 0
    fi
    timeout 120 "$python" -m venv --clear "$venv"
}

write_requirements() {
    "$venv/bin/python" "$here/setup/requirements.py" "$kind" >"$build/requirements.txt"
}

# Everything is fetched first, as wheels, so that what follows needs no network. -qq: errors alone.
# --use-pep517: an old pip builds a setup.py with what the environment has, and that is no `wheel`.
fetch_wheels() {
    timeout 1800 "$venv/bin/python" -m pip wheel -qq --use-pep517 --disable-pip-version-check --no-input \
        --wheel-dir "$build/wheels" --find-links "$build/wheels" \
        -c "$root/constraints.txt" -r "$build/requirements.txt" </dev/null
}

install_wheels() {
    timeout 600 "$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-input \
        --no-index --find-links "$build/wheels" \
        -c "$root/constraints.txt" -r "$build/requirements.txt" </dev/null &&
        timeout 120 "$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-input \
            --no-index --no-deps --no-build-isolation -e "$root" </dev/null
}

python_failed() {
    say "The Python packages could not be installed; the reason stands above."
    say "Behind a proxy or with a mirror of your own, pip's settings apply: pip config --help"
    exit 2
}
