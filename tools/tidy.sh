#!/bin/sh
# tidy.sh: what a reader should be able to rely on, checked: layers, format, facts. Prints every offence; silent when tidy.
set -u
cd "$(dirname "$0")/.." || exit 1
status=0

offence()
{
    echo "tidy: $1"
    printf '%s\n' "$2" | sed 's/^/    /'
    status=1
}

# expect_none WHAT GREP-ARGUMENTS...: no line of the tracked tree matches.
expect_none()
{
    what=$1
    shift
    found=$(git grep -nE "$@")
    [ -z "$found" ] || offence "$what" "$found"
}

# ---- layers ----
expect_none "engine/ includes only ipc/ and itself" '#include "(stages|kernels|tools|tests)/' -- engine
expect_none "stages/ includes only ipc/, kernels/ and itself" '#include "(engine|tools|tests)/' -- stages
expect_none "ipc/ includes nothing of other folders" '#include "(engine|stages|kernels|tools|tests)/' -- ipc
expect_none "kernels/ includes nothing of other folders" '#include "(engine|stages|ipc|tools|tests)/' -- kernels
expect_none "includes are written from the top folder" '#include "[^/"]*"' -- '*.c' '*.h'

# ---- facts ----
expect_none "memory orders are spelled out in ipc/ only (and by the one writer of the supervisor's words)" \
    'memory_order_' -- 'engine/*.c' 'engine/*.h' 'stages/*.[ch]' 'tools/*.[ch]' ':!engine/supervisor*.c'
expect_none "a broken promise is check(), not assert()" '(^|[^_a-z])assert\(' -- 'engine/*.[ch]' 'stages/*.[ch]' 'ipc/*.[ch]' 'kernels/*.[ch]' 'tools/*.[ch]'
expect_none "volatile is not for sharing" '(^|[^_a-z])volatile [a-z]' -- 'engine/*.[ch]' 'stages/*.[ch]' 'ipc/*.[ch]' 'tools/*.[ch]'
expect_none "unfinished work is an issue, not a comment" '\b(TODO|FIXME|XXX|HACK)\b' -- '*.c' '*.h' '*.sh' Makefile ':!tools/tidy.sh'

for header in $(git ls-files '*.h'); do
    head -n 20 "$header" | grep -q 'Used by:' || case "$header" in
    tests/* | */internal.h) ;;
    *) offence "a header says who uses it" "$header: no 'Used by:' in its first comment" ;;
    esac
done

for folder in engine stages ipc kernels tools tests docs; do
    [ -f "$folder/README.md" ] || offence "each folder has a README" "$folder/README.md is missing"
done

# Every struct that processes share has its size asserted or ends in tables sized by the plan.
for name in $(git grep -hoE '^struct [a-z_]+_shm \{' -- ipc | awk '{ print $2 }'); do
    case "$name" in process_shm | sup_shm | step_shm | process_entry_shm) continue ;; esac
    git grep -q "static_assert(sizeof(struct $name)" -- ipc || offence "shared structs assert their size" "struct $name"
done

# ---- format ----
if command -v clang-format >/dev/null 2>&1; then
    badly=$(git ls-files '*.c' '*.h' | grep -v unicode_table | xargs clang-format --dry-run -Werror 2>&1 | grep 'error:' | head -n 10)
    [ -z "$badly" ] || offence "clang-format -i is wanted" "$badly"
else
    offence "clang-format is not installed" "apt-get install clang-format"
fi
long=$(git ls-files '*.c' '*.h' | grep -v unicode_table | xargs python3 -c 'import sys
[print(f"{f}:{n}") for f in sys.argv[1:] for n, line in enumerate(open(f, encoding="utf-8"), 1) if len(line) > 129]' | head -n 5)
[ -z "$long" ] || offence "lines are at most 128 columns, code 120" "$long"

# ---- static analysis ----
if command -v cppcheck >/dev/null 2>&1; then
    found=$(git ls-files 'engine/*.c' 'stages/*.c' 'ipc/*.c' 'tools/*.c' |
        xargs cppcheck -q -j2 --enable=warning,portability --inline-suppr --error-exitcode=0 --std=c11 -I. \
            -D_GNU_SOURCE -DEVENFLOW_NUMERICS='""' --suppress=missingIncludeSystem --suppress=unknownMacro 2>&1 | head -n 20)
    [ -z "$found" ] || offence "cppcheck has something to say" "$found"
else
    offence "cppcheck is not installed" "apt-get install cppcheck"
fi
exit $status
