# Sourced by the set-up commands: goes to the repository's root, makes .venv when there is none, installs what the given
# requirements file lists (nothing when that file is already installed as it stands), and defines $python.
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
