#!/usr/bin/env bash
# On a machine with a CUDA card: is it right, then how fast is it.
#
#   OUT=figures benchmarks/gpu.sh
#
# Writes gpu-1b.json and gpu-8b.json under $OUT, and what the tests said to gpu-tests.txt. The 8B
# shape needs 60 GB on the card and 60 GB of disk in $WORK; it is left out where they are short.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-benchmarks/results}
WORK=${WORK:-$(mktemp -d)}
PYTHON=${PYTHON:-.venv/bin/python}
mkdir -p "$OUT" "$WORK"

"$PYTHON" -m pytest -m gpu 2>&1 | tee "$OUT/gpu-tests.txt"

measure() { # shape, GB of the card, GB of disk
    local card disk
    card=$("$PYTHON" -c 'import torch; print(torch.cuda.mem_get_info()[0] // 10**9)')
    disk=$(($(df --output=avail -k "$WORK" | tail -1) / 1000000))
    if ((card < $2 || disk < $3)); then
        echo "left out: $1 needs $2 GB on the card and $3 GB of disk, there are $card and $disk"
        return
    fi
    "$PYTHON" benchmarks/gpu.py --shape "$1" --folder "$WORK/$1" --out "$OUT/gpu-$1.json"
    rm -rf "${WORK:?}/$1"
}

measure 1b 30 30
measure 8b 60 60
