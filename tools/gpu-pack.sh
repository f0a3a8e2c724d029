#!/bin/sh
# gpu-pack.sh BUILD FOLDER: what gpu-check.sh runs, built here, for a machine that has a GPU but not our packages: programs and tests
# without debugging information, and the libraries that they are linked to, but for libc's own. Together under 64 MiB.
set -eu
build=$1 pack=$2
programs="bin/evenflow bin/evenflow-supervisor bin/evenflow-front bin/evenflow-sched bin/evenflow-stage
          bin/bench-cuda bin/bench-decode bin/bench-hand-off
          tests/test_cuda tests/test_forward_cuda tests/test_devices tests/driver/libcuda.so.1 tests/driver/libnccl.so.2"
rm -rf "$pack"
mkdir -p "$pack/bin" "$pack/tests/driver" "$pack/lib"
for program in $programs; do
    strip --strip-debug -o "$pack/$program" "$build/$program" # a test looks at symbols
done
for program in $programs; do
    ldd "$build/$program"
done | awk '$2 == "=>" && $3 ~ /^\// && $1 !~ /^(libc|libm|libdl|librt|libpthread|libresolv|libcuda)\.so/ { print $3 }' | sort -u |
    while read -r library; do
        cp -L "$library" "$pack/lib/"
    done
: >"$pack/packed"
du -sm "$pack" | awk '{ print "  PACK  " $2 ", " $1 " MiB"; exit $1 > 60 }'
