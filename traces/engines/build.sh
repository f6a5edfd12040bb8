#!/bin/sh
# Copies the shipped runs and operator profiles from a folder of originals, then lists checksums.
# Usage: traces/engines/build.sh FOLDER   (README.md says what the folder holds)
set -eu
from=$1
here=$(dirname "$0")

for run in RTXPRO6000__Llama-3.1-8B RTXPRO6000__Qwen3-32B; do
    mkdir -p "$here/$run"
    cp "$from/$run/meta.json" "$from/$run/timeseries.csv" "$here/$run/"
    gzip -9 -n -c "$from/$run/requests.jsonl" > "$here/$run/requests.jsonl.gz"
done
cp "$from"/sharegpt-*-300-sps10.hash16.jsonl.gz "$here/"
mkdir -p "$here/op_profiles"
for profile in meta-llama__Llama-3.1-8B__bf16__tp1 Qwen__Qwen3-32B__bf16__tp2; do
    for table in dense per_sequence attention skew_fit; do
        cp "$from/op_profiles/RTXPRO6000__${profile}__$table.csv.gz" "$here/op_profiles/"
    done
    cp "$from/op_profiles/RTXPRO6000__${profile%__tp*}__meta.yaml" "$here/op_profiles/"
done
chmod -R u+w "$here"

cd "$here"
find . -type f ! -name SHA256SUMS ! -name README.md ! -name build.sh | LC_ALL=C sort | xargs sha256sum > SHA256SUMS
