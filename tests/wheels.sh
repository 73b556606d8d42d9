#!/usr/bin/env bash
# The wheel without a compiler, with a C++ compiler and with a CUDA compiler, where there is one: bash tests/wheels.sh [FOLDER]
# Uses the first python3 on PATH and asks the package index. FOLDER: where to leave what each build said, and
# which kernels the wheel serves.
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
logs=${1:+$(mkdir -p -- "$1" && cd -- "$1" && pwd -P)}
[ -z "$logs" ] || rm -f -- "$logs"/{without,with,cuda}.txt
work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT

wheel() { # wheel NAME: from a copy of what is tracked or would be, so that no build of this checkout is in it
    mkdir -- "$work/$1"
    (cd -- "$root" && tar cf - --exclude='*.so' --exclude=__pycache__ pyproject.toml setup.cfg CMakeLists.txt README.md LICENSE apts_mpi) |
        tar xf - -C "$work/$1"
    local log=$work/$1/log
    python3 -m pip wheel -v --disable-pip-version-check --no-input --no-deps -w "$work/$1/wheels" "$work/$1" >"$log" 2>&1 ||
        { cat -- "$log" >&2; exit 1; }
    python3 -m zipfile -e "$work/$1"/wheels/apts_mpi-*.whl "$work/$1/content"
}

state() { # state NAME [VARIABLE=VALUE]: which kernels that wheel serves
    (cd -- "$work/$1/content" && env "${2:-APTS_NATIVE=}" python3 -c 'from apts_mpi.native.extension import state; print(state())')
}

told() { # told NAME COMPILERS: keep the log, without the folders of this machine
    [ -n "$logs" ] || return 0
    {
        echo "commit: $(git -C "$root" describe --always --dirty --abbrev=40 2>/dev/null || echo unknown)"
        echo "compilers: $2"
        grep -v /nanobind/src/ "$work/$1/log" | sed -E -e "s#$work/$1#.#g" -e 's#(^|[ "])/[^ ]*/#\1#g' |
            grep -E '^ *(--|\*\*\*|\[[0-9]+/[0-9]+\]|Successfully|Created wheel|Building wheel|.*error|.*warning)' || true
        (cd -- "$work/$1/content" && find apts_mpi/native -name '_kernels*' -printf '%P, %s bytes\n')
        echo "apts_mpi.native.extension.state(): $(state "$1")"
    } >"$logs/$1.txt"
}

expect() { # expect WORDS FOUND
    case $2 in *"$1"*) echo "$2" ;; *) echo "expected '$1', found '$2'" >&2; exit 1 ;; esac
}

CXX=$work/none wheel without
expect "nothing was compiled" "$(state without)"
told without none
[ ! -e "$work/without/content/apts_mpi/native/src" ] || { echo "sources of kernels in the wheel" >&2; exit 1; }
if command -v -- "${CXX:-c++}" >/dev/null; then
    CUDACXX=$work/none wheel with
    expect "compiled, " "$(state with)"
    told with "$("${CXX:-c++}" --version | head -n 1)"
    expect "APTS_NATIVE=0" "$(state with APTS_NATIVE=0)"
    case $(state with) in *CUDA*) echo "kernels for GPUs without a CUDA compiler" >&2; exit 1 ;; esac
    if command -v -- "${CUDACXX:-nvcc}" >/dev/null; then
        wheel cuda
        expect ", CUDA" "$(state cuda)"
        told cuda "$("${CXX:-c++}" --version | head -n 1); $("${CUDACXX:-nvcc}" --version | grep release)"
        if ldd "$work"/cuda/content/apts_mpi/native/_kernels.*.so | grep -E 'libcudart|libtorch|libmpi'; then
            echo "the kernels need a library that users may not have" >&2
            exit 1
        fi
    else
        echo "no CUDA compiler: the wheel with kernels for GPUs was not built"
    fi
else
    echo "no C++ compiler: the wheel with kernels was not built"
fi
if command -v cmake >/dev/null && command -v ctest >/dev/null; then # in a checkout: the same suite by ctest
    cmake -S "$root" -B "$work/build" >"$work/build.log" 2>&1 || { cat -- "$work/build.log" >&2; exit 1; }
    expect "Total Tests: 5" "$(ctest --test-dir "$work/build" -N | tail -n 1)" # unit, and 1 to 4 ranks
else
    echo "no CMake: the list of its tests was not looked at"
fi
