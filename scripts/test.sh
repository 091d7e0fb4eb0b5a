#!/usr/bin/env bash
# What `make check` and `make test` run: `scripts/test.sh check|test [pytest's arguments]`.
set -euo pipefail
cd "$(dirname "$0")/.."

which=${1:?check or test}
shift
bin=$PWD/.venv/bin
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# Checks read the settings, which would make keys in the home of whoever runs this.
settings=(env -u DATABASE_URL -u REDIS_URL -u DJANGO_SETTINGS_MODULE SIGNALBOX_HOME="$scratch")
production=(
    "${settings[@]}"
    SIGNALBOX_PUBLIC_URL=https://signalbox.example.org
    DATABASE_URL=postgresql://signalbox:none@127.0.0.1:1/signalbox
    REDIS_URL=redis://127.0.0.1:1/0
)

step() {
    echo "== $1"
    shift
    "$@"
}

if [ "$which" = test ] && [ "${BROWSER:-1}" != 0 ] &&
    ! command -v chromium >/dev/null && ! command -v chromium-browser >/dev/null && ! command -v google-chrome >/dev/null; then
    echo "No chromium was found: type apt-get install chromium, or skip the browser's tests with BROWSER=0 make test." >&2
    exit 1
fi

step "ruff check" "$bin/ruff" check .
step "ruff format" "$bin/ruff" format --check .
step "mypy" "${settings[@]}" "$bin/mypy"
if [ "$which" = check ]; then
    step "unit tests" "$bin/pytest" -q -m unit -n 2 "$@"
    exit 0
fi
# The database is not asked here: whether models and migrations agree needs none, and says so as a warning.
step "migrations" "${settings[@]}" "$bin/python" -W ignore manage.py makemigrations --check --dry-run
step "deployment checks" "${production[@]}" "$bin/python" manage.py check --deploy --fail-level WARNING
# A file's tests run in one worker, which prepares once what they share; only some of them start the whole product.
# Three workers on two processors: much of the time is waiting. The files that start the product come first, so that none of them is left for the end; see `make prove` for `long`.
step "tests" "$bin/pytest" -n 3 --dist loadfile --no-loadscope-reorder -m "not long" "$@"
