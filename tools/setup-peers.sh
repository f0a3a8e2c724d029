#!/bin/sh
# setup-peers.sh FOLDER PEERS: gets what bench-peers.py compares with, pinned, into a folder of its own: nothing is installed.
#
# A virtual environment for Python packages; llama.cpp from the source that the package llama-cpp-python carries, built there with
# cmake and ninja out of the same environment (needs g++; about ten minutes on two cores, once).
set -eu
folder=$1 peers=$2
python="$folder/venv/bin/python"
LLAMA=0.3.36

fail()
{
    echo "setup-peers: $*" >&2
    exit 1
}

install()
{
    "$python" -m pip install -q --disable-pip-version-check "$@" || fail "pip cannot install $*: is there a network?"
}

mkdir -p "$folder"
[ -x "$python" ] || python3 -m venv "$folder/venv" || fail "python3 cannot make a virtual environment: is python3-venv installed?"
case ",$peers," in *,openvino,*)
    "$python" -c 'import openvino_genai' 2>/dev/null || install openvino-genai==2026.4.1 numpy
    ;;
esac
case ",$peers," in *,llama,*)
    if [ ! -f "$folder/llama/ready" ]; then
        command -v g++ >/dev/null || fail "llama.cpp needs g++ to be built: apt-get install g++"
        install cmake==4.4.5 ninja==1.13.2
        if [ ! -f "$folder/llama/CMakeLists.txt" ]; then
            "$python" -m pip download -q --disable-pip-version-check --no-deps --no-binary :all: --no-build-isolation -d "$folder" \
                "llama-cpp-python==$LLAMA" >/dev/null 2>&1 ||
                "$python" -m pip download -q --disable-pip-version-check --no-deps --no-binary :all: -d "$folder" "llama-cpp-python==$LLAMA" ||
                fail "pip cannot download llama-cpp-python: is there a network?"
            tar -C "$folder" -xf "$folder/llama_cpp_python-$LLAMA.tar.gz"
            mv "$folder/llama_cpp_python-$LLAMA/vendor/llama.cpp" "$folder/llama"
            rm -rf "$folder/llama_cpp_python-$LLAMA" "$folder/llama_cpp_python-$LLAMA.tar.gz"
        fi
        PATH="$folder/venv/bin:$PATH"
        cmake -S "$folder/llama" -B "$folder/llama/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_OPENSSL=OFF \
            -DBUILD_SHARED_LIBS=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_UI=OFF \
            -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_IS_DEV=OFF >"$folder/llama.log" 2>&1 &&
            ninja -C "$folder/llama/build" -j2 llama-bench llama-batched-bench llama-server llama-quantize >>"$folder/llama.log" 2>&1 ||
            fail "llama.cpp does not build; see $folder/llama.log"
        touch "$folder/llama/ready"
    fi
    ;;
esac
