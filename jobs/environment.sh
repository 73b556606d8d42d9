# Sourced by jobs/laptop.sh and tests/stages.sh: a virtual environment with the package and its pinned requirements.
# A second call with the same setup.cfg, constraints.txt and place does nothing. Sets nothing but functions and `root`.

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 4
}

as_root() { # as_root COMMAND...: run it as root if that needs no question, else return 1
    if [ "$(id -u)" = 0 ]; then "$@"; elif sudo -n true 2>/dev/null; then sudo -n "$@"; else return 1; fi
}

find_python() { # prints a Python that is new enough
    local name
    for name in ${PYTHON:+"$PYTHON"} python3 python3.14 python3.13 python3.12 python3.11; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v -- "$name"
            return
        fi
    done
    fail "Python 3.11 or newer is needed. Type: apt-get install python3 python3-venv   (or set PYTHON to one)"
}

need_venv() { # need_venv PYTHON: the modules that make environments; Debian ships them apart
    "$1" -c 'import venv, ensurepip' 2>/dev/null && return
    local package
    package=$("$1" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    echo "installing $package ..."
    as_root sh -c "apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $package" \
        >/dev/null 2>&1 && "$1" -c 'import venv, ensurepip' 2>/dev/null && return
    fail "this Python cannot make environments. Type: sudo apt-get install $package"
}

pip_quietly() { # pip_quietly VENV ARGS...: pip with its output in VENV/pip.log
    local venv=$1
    shift
    (cd -- "$root" && PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 "$venv/bin/python" -m pip "$@") >>"$venv/pip.log" 2>&1
}

has_gpu() { [ -e /dev/nvidia0 ] || nvidia-smi -L 2>/dev/null | grep -q GPU; }

install_torch() { # install_torch VENV: the pinned torch, without CUDA where there is no GPU and the CPU builds can be had
    local venv=$1 pin
    pin=$(grep '^torch==' "$root/constraints.txt")
    "$venv/bin/python" - "$pin" <<'END' && return
import sys
from importlib.metadata import PackageNotFoundError, version
try:
    sys.exit(version("torch").split("+")[0] != sys.argv[1].split("==")[1])
except PackageNotFoundError:
    sys.exit(1)
END
    if ! has_gpu; then
        echo "installing $pin for CPUs (200 MB) ..."
        pip_quietly "$venv" install --no-deps --timeout 10 --retries 0 --index-url https://download.pytorch.org/whl/cpu "$pin" && return
        echo "no CPU build at hand; taking the usual one, which is larger ..."
    fi
    echo "installing $pin ..."
    pip_quietly "$venv" install -c constraints.txt "$pin" || install_failed "$venv"
}

install_failed() {
    tail -n 15 -- "$1/pip.log" >&2
    fail "the installation failed; all of its output is in $1/pip.log"
}

stamp_of() { # stamp_of EXTRAS: what an environment depends on; it cannot be moved, so its place belongs to it
    (cd -- "$root" && printf '%s\n' "$root" "$1" | cat - setup.cfg pyproject.toml constraints.txt jobs/environment.sh CMakeLists.txt \
        apts_mpi/native/src/* | sha256sum | cut -d' ' -f1)
}

fresh_venv() { # fresh_venv VENV: make it unless it stands here and its Python runs
    [ "$(cat -- "$1/place" 2>/dev/null)" = "$1" ] && "$1/bin/python" -c 'import pip' 2>/dev/null && return
    [ ! -e "$1" ] || [ -e "$1/place" ] || fail "$1 was not made by this script; move it away"
    local python
    python=$(find_python) || exit
    need_venv "$python"
    echo "making $1 with $("$python" -V) ..."
    rm -rf -- "$1" && mkdir -- "$1" && printf '%s\n' "$1" >"$1/place" && "$python" -m venv "$1" || fail "cannot make $1"
}

environment() { # environment VENV EXTRAS: the package in VENV, editable, so that a second call sees changed sources; kernels if they compile
    local venv=$1 extras=$2 stamp
    stamp=$(stamp_of "$extras")
    [ "$(cat -- "$venv/stamp" 2>/dev/null)" = "$stamp" ] && "$venv/bin/python" -c '' 2>/dev/null && return
    fresh_venv "$venv"
    install_torch "$venv"
    echo "installing apts_mpi[$extras] ..."
    pip_quietly "$venv" install -c constraints.txt -e ".[$extras]" || install_failed "$venv"
    printf '%s\n' "$stamp" >"$venv/stamp"
}
