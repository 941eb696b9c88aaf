# Sourced by demo.sh and test.sh: changes to the repository's root and defines $python. install_requirements
# makes .venv if there is none, and installs a requirements file unless it is installed already and has not changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=.venv/bin/python

install_requirements() {
    local file=$1 installed=.venv/installed-$1 log
    if [ ! -x "$python" ]; then
        echo "making .venv"
        "${PYTHON:-python3}" -m venv .venv
    fi
    if ! cat requirements.txt "$file" | cmp -s - "$installed"; then
        echo "installing $file into .venv (a few minutes the first time)"
        log=$(mktemp)
        if ! "$python" -m pip install --disable-pip-version-check -q -r "$file" >"$log" 2>&1; then
            cat "$log" >&2
            rm "$log"
            echo "error: pip could not install $file; see above" >&2
            exit 1
        fi
        rm "$log"
        cat requirements.txt "$file" >"$installed"
    fi
}
