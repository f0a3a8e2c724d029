#!/bin/sh
# setup.sh PACKAGE... : installs the Debian packages that are not there yet. Quiet and quick when nothing is missing.
#
# Each failure is one line that says what to do. V=1 shows what apt prints.
set -eu

fail()
{
    echo "setup: $*" >&2
    exit 1
}

command -v dpkg-query >/dev/null 2>&1 ||
    fail "this is no Debian or Ubuntu; install by hand what these packages hold, then run make all: $*"

missing=
for package in "$@"; do
    case "$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null)" in
    "install ok installed") ;;
    *) missing="$missing $package" ;;
    esac
done
[ -n "$missing" ] || exit 0

as_root=
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null 2>&1 || fail "no sudo here; as root run: apt-get install$missing"
    sudo -n true 2>/dev/null || [ -t 0 ] || fail "sudo wants a password; run once: sudo apt-get install$missing"
    as_root=sudo
fi

free_kb=$(df -Pk /var/cache/apt/ 2>/dev/null | awk 'NR == 2 { print $4 }')
[ "${free_kb:-400000}" -ge 400000 ] || fail "only $((free_kb / 1024)) MB free on /var; 400 MB are needed for:$missing"

log=$(mktemp) || fail "no space for a temporary file in ${TMPDIR:-/tmp}"
trap 'rm -f "$log"' EXIT
run()
{
    if [ "${V:-0}" = 1 ]; then "$@"; else "$@" >"$log" 2>&1; fi
}

echo "setup: installing$missing"
run $as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 update ||
    fail "apt-get update failed: $(grep -m1 '^E:' "$log" || echo 'is the network up?') (V=1 shows all)"
# shellcheck disable=SC2086 # a list of words
run $as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends $missing ||
    fail "apt-get install failed: $(grep -m1 '^E:' "$log" || echo 'see V=1') (V=1 shows all)"
