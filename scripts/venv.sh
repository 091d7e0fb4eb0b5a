#!/usr/bin/env bash
# Makes .venv with a Python that Signalbox knows and installs the pinned dependencies: `scripts/venv.sh product|tests`.
# A stamp holds the sum of what was installed, so that the next call has nothing to do.
set -euo pipefail
cd "$(dirname "$0")/.."

part=${1:?product or tests}
marker='# ---- tests and checks only, from here on ----'
python=.venv/bin/python

fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1; }

if [ -x "$python" ] && ! fits "$python"; then
    echo "The folder .venv was made with another Python than 3.11 or 3.12: type rm -r .venv and try again." >&2
    exit 1
fi
if [ ! -x "$python" ] || ! "$python" -m pip --version >/dev/null 2>&1; then
    for candidate in python3.12 python3.11 python3 python; do
        if command -v "$candidate" >/dev/null && fits "$candidate"; then chosen=$candidate && break; fi
    done
    if [ -z "${chosen:-}" ]; then
        echo "Signalbox needs Python 3.11 or 3.12: type apt-get install python3 python3-venv (or brew install python@3.12)." >&2
        exit 1
    fi
    rm -rf .venv
    if ! "$chosen" -m venv .venv >/tmp/signalbox-venv.$$ 2>&1; then
        rm -rf .venv /tmp/signalbox-venv.$$
        echo "$chosen cannot make a virtual environment: type apt-get install python3-venv and try again." >&2
        exit 1
    fi
    rm -f /tmp/signalbox-venv.$$
fi

# Bytecode of the project's own files: six parts start at once and each would compile them, at every start where
# PYTHONDONTWRITEBYTECODE is set. A checkout that cannot be written works all the same.
compile() { "$python" -m compileall -q controlplane inference examples manage.py >/dev/null 2>&1 || true; }

stamp=.venv/installed-$part
sum=$(cksum <requirements.lock)
# What the tests need includes the product.
for done in "$stamp" .venv/installed-tests; do
    if [ -f "$done" ] && [ "$(cat "$done")" = "$sum" ]; then compile && exit 0; fi
done

wanted=.venv/wanted.txt
if [ "$part" = product ]; then sed "/^$marker\$/,\$d" requirements.lock >"$wanted"; else cp requirements.lock "$wanted"; fi
echo "Installing $(grep -c '^[^ #]' "$wanted") packages into .venv; the first time this takes a minute or two."
# -qq: errors alone. --no-deps: the lock names every package.
if ! "$python" -m pip install -qq --disable-pip-version-check --no-input --require-hashes --no-deps -r "$wanted"; then
    echo "The packages could not be installed: see the lines above, mend that (a network, a proxy, disk space) and try again." >&2
    exit 1
fi
compile
echo "$sum" >"$stamp"
