#!/bin/sh
# Stops a demo that was kept and removes what make made in this clone; what git holds stays.
set -eu
cd "$(dirname "$0")/.."

if [ -d .demo ] && [ -x .venv/bin/python ] && [ -f scripts/demo.py ]; then
    if ! timeout 60 .venv/bin/python scripts/demo.py --stop; then
        echo "The demo that was kept could not be stopped, so nothing was removed (see above)." >&2
        echo "If it is not running any more, remove .demo and run make clean again." >&2
        exit 1
    fi
fi
rm -rf .demo .venv build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
find . -path ./.git -prune -o -type d \( -name __pycache__ -o -name .pio -o -name '*.egg-info' \) \
    -prune -exec rm -rf {} +
