# bench-engine.sh: sourced by the bench scripts: one engine at a time, in a folder of its own, ended with the script.
#
# bin: the programs.   work: the folder.   socket: the engine's.
bin=$(dirname "$0")/../${BUILD:-build}/bin
work=$(mktemp -d)
socket=$work/bench.sock
engine=
mkfifo "$work/ready"
trap 'stop_engine; rm -rf "$work"' EXIT

# start_engine MODEL [OPTIONS OF SERVE...]: returns when it is ready.
start_engine()
{
    "$bin/evenflow" serve "$@" --socket "$socket" --log-level warn --ready-fd 9 9>"$work/ready" &
    engine=$!
    read -r _ <"$work/ready" || { # the end of the file: it has failed, and said why
        engine=
        exit 1
    }
}

stop_engine()
{
    [ -n "$engine" ] || return 0
    kill "$engine"
    wait "$engine" || true
    engine=
}

# number KEY: of a JSON object on standard input.
number()
{
    python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"
}
