# Sourced by the other scripts: finds Pythons, and makes their virtual environments in .venvs/pyX.Y.

cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
export PIP_CACHE_DIR="${PIP_CACHE_DIR:-$PWD/.venvs/.cache}" # nothing is written to HOME

SUPPORTED="3.11 3.12 3.13"

# find_python X.Y: the path of a working interpreter of that version, or nothing. Shims of version managers are on
# PATH for versions that are not switched on, so each candidate is run.
find_python() {
    local python
    while IFS= read -r python; do
        if "$python" -c 'import sqlite3, ssl, sys, venv
sys.exit(sys.version_info < (3, 11) or "%d.%d" % sys.version_info[:2] != sys.argv[1])' "$1" 2>/dev/null; then
            echo "$python"
            return
        fi
    done < <(
        type -ap "python$1" python3 python
        printf '%s\n' "${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/$1".*/bin/python "${HOME:-}/.pyenv/versions/$1".*/bin/python
    )
}

# found_versions: the supported versions that are here, or else that of python3 when it is newer.
found_versions() {
    local version found=""
    for version in $SUPPORTED; do
        [ -z "$(find_python "$version")" ] || found="$found $version"
    done
    if [ -z "$found" ]; then
        version=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || true
        [ -z "$(find_python "$version")" ] || found=$version
    fi
    [ -n "$found" ] || { echo "sitq needs Python 3.11 or newer, and found none." >&2; return 1; }
    echo $found
}

# use_venv X.Y [GROUP]: puts the environment of that Python, with a dependency group (dev), first on PATH. It is
# made once, and again when pyproject.toml or the place of the checkout has changed.
use_venv() {
    local version=$1 group=${2:-dev} venv="$PWD/.venvs/py$1${2:+-$2}" python stamp
    python=$(find_python "$version")
    [ -n "$python" ] || { echo "Python $version was not found (sitq needs 3.11 or newer)." >&2; return 1; }
    stamp="$venv $group $("$python" -VV | tr '\n' ' ') $(cksum <pyproject.toml)"
    mkdir -p .venvs
    (
        ! command -v flock >/dev/null || flock 9 # two scripts at once: the second waits
        [ "$(cat "$venv/stamp" 2>/dev/null)" = "$stamp" ] || make_venv
    ) 9>.venvs/lock || return
    export PATH="$venv/bin:$PATH" VIRTUAL_ENV="$venv"
}

make_venv() {
    echo "Making ${venv#"$PWD/"} …" >&2
    # Debian's Python comes without ensurepip, but often with pip. Dependency groups need pip 25.1.
    { "$python" -m venv --clear "$venv" >/dev/null 2>&1 ||
        { "$python" -m venv --clear --without-pip "$venv" &&
            "$python" -m pip --python "$venv/bin/python" install -qq pip; }; } &&
        "$venv/bin/python" -m pip install -qq --upgrade pip &&
        "$venv/bin/python" -m pip install -qq --editable ".[cli,conformance,postgres,redis,uvloop]" --group "$group" &&
        echo "$stamp" >"$venv/stamp"
}
