#!/bin/sh
# spin.sh: checks the protocols that tests can only sample, in every interleaving (Spin); and that a broken one is noticed.
set -u
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
here=$(cd "$(dirname "$0")" && pwd)
status=0

# errors MODEL [DEFINITION]: how many errors the exhaustive search finds.
errors()
{
    (cd "$folder" && rm -f pan* && spin ${2:+-D$2} -a "$here/$1" >/dev/null && gcc -O0 -w -DSAFETY -o pan pan.c &&
        ./pan -m100000 >out && sed -n 's/.*errors: \([0-9]*\).*/\1/p' out)
}

check()
{
    found=$(errors "$1" "${3:-}")
    states=$(sed -n 's/ *\([0-9]*\) states, stored.*/\1/p' "$folder/out")
    case "$2${found:-?}" in
    holds0 | fails[1-9]*) echo "spin: $1${3:+ with $3}: $2, as it must ($states states)" ;;
    *)
        echo "spin: $1${3:+ with $3}: errors: ${found:-none could be counted}; it must be that it $2"
        status=1
        ;;
    esac
}

check stage_death.pml holds
check stage_death.pml fails RELEASE_FIRST
check stage_death.pml fails NO_FENCE
check bell.pml holds
check bell.pml fails NO_FENCE
check bell.pml fails NO_RING_AT_START
exit $status
