#!/usr/bin/env bash
# The kernels under sanitizers: bash tests/sanitize.sh   (of an environment with the tests' requirements)
#
# First without Python (tests/native), those of a GPU emulated by threads, under ThreadSanitizer and under AddressSanitizer; then the module
# and its tests under AddressSanitizer and UndefinedBehaviorSanitizer. ThreadSanitizer is not for the module: GCC's OpenMP run time is not
# instrumented, so that it would take every barrier for a race; tests/native shares the same blocks out to threads of its own.
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
command -v -- "${CXX:-c++}" >/dev/null || { echo "no C++ compiler: nothing to look at"; exit 0; }
work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT

for kind in thread address,undefined; do
    "${CXX:-c++}" -std=c++17 -O1 -g -fsanitize=$kind -fno-sanitize-recover=all -I"$root/apts_mpi/native/src" -Wall -Wextra -Wno-psabi -pthread \
        "$root/tests/native/check.cpp" -o "$work/check"
    setarch -R "$work/check" # ThreadSanitizer of GCC 12 does not know the widest random addresses of newer kernels
done

python3 -m venv "$work/tools"
"$work/tools/bin/python" -m pip install -q --disable-pip-version-check --no-input cmake nanobind
"$work/tools/bin/cmake" -S "$root" -B "$work/build" -DSKBUILD=ON -DCMAKE_BUILD_TYPE=RelWithDebInfo -DAPTS_SANITIZE=address,undefined \
    -DPython_EXECUTABLE="$work/tools/bin/python" >"$work/log"
"$work/tools/bin/cmake" --build "$work/build" -j 2 >>"$work/log" || { tail -n 20 "$work/log" >&2; exit 1; }
(cd -- "$root" && tar cf - --exclude='*.so' --exclude=__pycache__ apts_mpi) | tar xf - -C "$work"
"$work/tools/bin/cmake" --install "$work/build" --prefix "$work" >/dev/null
cp -- "$root/tests/unit/test_native.py" "$work"

asan=$("${CXX:-c++}" -print-file-name=libasan.so) ubsan=$("${CXX:-c++}" -print-file-name=libubsan.so)
cd -- "$work" # whose package comes before an installed one
export LD_PRELOAD=$asan:$ubsan ASAN_OPTIONS=detect_leaks=0:verify_asan_link_order=0 APTS_NATIVE=1 OMP_NUM_THREADS=2
python3 -c "from apts_mpi.native.extension import extension as found; assert found().__file__.startswith('$work'), found()"
python3 -m pytest -q -p no:cacheprovider -c /dev/null --rootdir "$work" test_native.py -k "not switch"
