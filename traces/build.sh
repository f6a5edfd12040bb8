#!/bin/sh
# Makes the shipped traces again from the original files, then lists their checksums.
# Usage: traces/build.sh FOLDER   (FOLDER holds the originals under the paths used below)
# README.md says where each original comes from. Existing traces are overwritten.
set -eu
from=$1
here=$(dirname "$0")
batchgen=${BATCHGEN:-batchgen}

shipped() { # original, name, source, licence, further options
    original=$1 name=$2 origin=$3 licence=$4
    shift 4
    $batchgen trace import "$from/$original" -o "$here/$name.jsonl.gz" --force \
        --name "$name" --source "$origin" --licence "$licence" "$@"
}

azure=Azure/AzurePublicDataset@b469a11
shipped azure_llm_2023/AzureLLMInferenceTrace_conv.csv.gz azure-conv-2023 $azure CC-BY-4.0
shipped azure_llm_2023/AzureLLMInferenceTrace_code.csv.gz azure-code-2023 $azure CC-BY-4.0
mooncake=kvcache-ai/Mooncake@3b5a594
shipped mooncake_fast25/conversation_trace.jsonl.gz mooncake-conversation $mooncake Apache-2.0
shipped mooncake_fast25/synthetic_trace.jsonl.gz mooncake-synthetic $mooncake Apache-2.0
shipped vidur_arxiv_summarization/arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv.gz \
    vidur-arxiv-summarization microsoft/vidur@7d47513 MIT
shipped apex_lengths/llama_creation_05.csv.gz apex-creation-llama microsoft/apex_plus@8769096 MIT
shipped servegen/reason_deepseek-r1.tar.gz servegen-deepseek-r1 alibaba/ServeGen@f891d11 \
    Apache-2.0 --requests 10000 --seed 0

cd "$here"
sha256sum -- *.jsonl.gz > SHA256SUMS
