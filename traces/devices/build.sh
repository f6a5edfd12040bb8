#!/bin/sh
# Makes the shipped device traces again from the original files, then lists their checksums.
# Usage: traces/devices/build.sh FOLDER   (FOLDER holds the originals under the paths used below)
# README.md says where each original comes from. Existing traces are overwritten.
set -eu
from=$1
here=$(dirname "$0")
batchgen=${BATCHGEN:-batchgen}

shipped() { # original, name, source, licence, further options
    original=$1 name=$2 origin=$3 licence=$4
    shift 4
    $batchgen trace devices import "$from/$original" -o "$here/$name.jsonl" --force \
        --name "$name" --source "$origin" --licence "$licence" "$@"
}

bamboo=uclasystem/bamboo@8080929
shipped bamboo_spot/p3-trace.csv.gz aws-p3-spot $bamboo MIT
shipped bamboo_spot/p3-trace.csv.gz aws-p3-spot-1h $bamboo MIT --start-s 19800 --duration-s 3600
shipped bamboo_spot/a100x1-east1b.txt.gz gcp-a100-spot $bamboo MIT
pai=alibaba/clusterdata@7a6c496
for job in 1 2 3; do
    shipped alibaba_pai_minibatch/job_${job}_norm.csv.gz pai-job$job-stragglers $pai CC-BY-4.0
done

cd "$here"
sha256sum -- *.jsonl > SHA256SUMS
