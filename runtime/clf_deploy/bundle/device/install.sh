#!/bin/sh
# Installs this bundle without a network:  sh install.sh [PREFIX]
# See docs/bundle.md of clf-edge. PYTHON=... names another Python.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
wanted=$(sed -n 's/^ *"python": "\(3\.[0-9]*\)",$/\1/p' "$here/manifest.json")

for python in ${PYTHON:-"python$wanted" python3}; do
    if command -v "$python" >/dev/null 2>&1 &&
        "$python" -I -c "import sys, venv; sys.exit('%d.%d' % sys.version_info[:2] != '$wanted')" 2>/dev/null; then
        exec "$python" -I "$here/install.py" "$@"
    fi
done
found=$(python3 --version 2>/dev/null) || found='no Python'
echo "install.sh: this bundle is for Python $wanted, found $found; build a bundle for the Python of this device" >&2
exit 4
