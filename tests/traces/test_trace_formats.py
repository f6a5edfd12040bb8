"""Importers of public formats: a few lines each, bad input, and the full files where present."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchgen.errors import DataError, UserError
from batchgen.trace import Trace
from batchgen.trace.formats.registry import detect, format_names, import_trace
from batchgen.trace.formats.times import date_ps, scaled_ps

SHARED = Path(__file__).parents[2].parent / "shared" / "traces"

SAMPLES: dict[str, tuple[str, list[int], list[int], list[int]]] = {
    # format: text, prompts, outputs, arrivals in ps
    "azure": (
        "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
        "2023-11-16 18:15:46.6805900,374,44\r\n"
        "2023-11-16 18:15:50.9951691,396,109",
        [374, 396],
        [44, 109],
        [0, 4_314_579_100_000],
    ),
    "vidur": (
        "num_prefill_tokens,num_decode_tokens,pd_ratio\n3772,54,69.8\n2015.0,156,12.9\n",
        [3772, 2015],
        [54, 156],
        [0, 0],
    ),
    "apex": (
        "start_time_offset_ns,context_tokens,generated_tokens\n618518284,304,822\n618518285,1,2\n",
        [304, 1],
        [822, 2],
        [0, 1000],
    ),
    "burstgpt": (
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,"
        "Log Type\n5,,1.5,ChatGPT,472,18,490,Conversation log\n"
        "45.5,7,2,GPT-4,1087,230,1317,API log\n",
        [472, 1087],
        [18, 230],
        [0, 40_500_000_000_000],
    ),
    "mooncake": (
        '{"timestamp": 3, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]}\n'
        '{"timestamp": 1, "input_length": 700, "output_length": 6, "hash_ids": [0, 2]}\n',
        [600, 700],
        [5, 6],
        [2_000_000_000, 0],
    ),
    "bailian": (
        '{"chat_id": 1, "parent_chat_id": -1, "timestamp": 61.114, "input_length": 17, '
        '"output_length": 5, "type": "text", "turn": 1, "hash_ids": [8, 9]}\n'
        '{"chat_id": 2, "timestamp": 61.2, "input_length": 3, "output_length": 6, "hash_ids": []}',
        [17, 3],
        [5, 6],
        [0, 86_000_000_000],
    ),
    "llmservingsim": (
        '{"input_toks": 33, "output_toks": 5, "arrival_time_ns": 46926808, "hash_ids": [0, 1]}\n'
        '{"input_toks": 7, "output_toks": 6, "arrival_time_ns": 46926809}\n',
        [33, 7],
        [5, 6],
        [0, 1000],
    ),
    "vllm": (
        '{"request_id": "a", "input_toks": 9, "output_toks": 5, "arrival_time": '
        "1777142838.338653}\n"
        '{"request_id": "b", "input_toks": 7, "output_toks": 6, "arrival_time": '
        "1777142838.338654}\n",
        [9, 7],
        [5, 6],
        [0, 1_000_000],
    ),
    "batchgen": (
        '{"prompt_tokens": 1, "output_tokens": 2}\n{"prompt_tokens": 3, "output_tokens": 4}\n',
        [1, 3],
        [2, 4],
        [0, 0],
    ),
}


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("packed", [False, True])
def test_sample_of_each_format(tmp_path: Path, name: str, packed: bool) -> None:
    text, prompts, outputs, arrivals = SAMPLES[name]
    path = tmp_path / "sample"
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    assert detect(path) == name
    for trace in (import_trace(path), import_trace(path, format=name)):
        assert trace.prompt_tokens.tolist() == prompts
        assert trace.output_tokens.tolist() == outputs
        assert trace.arrival_ps.tolist() == arrivals
        assert "dropped" not in trace.meta
    assert len(import_trace(path, limit=1)) == 1


def test_every_format_is_tested() -> None:
    assert {*SAMPLES, "servegen"} == set(format_names())


def test_prefix_blocks_and_ids_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text(SAMPLES["mooncake"][0])
    trace = import_trace(path)
    assert trace.prefix_block_tokens == 512
    assert trace.prefix_blocks.tolist() == [0, 1, 0, 2]
    assert trace.prefix_offsets.tolist() == [0, 2, 4]
    path.write_text(SAMPLES["vllm"][0])
    assert import_trace(path).ids == ("a", "b")


def test_failed_requests_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "1,ChatGPT,10,0,10,API log\n2,ChatGPT,10,3,13,API log\n3,GPT-4,0,0,0,API log\n"
    )
    trace = import_trace(path)
    assert len(trace) == 1
    assert sorted(trace.meta["dropped"].values()) == [1, 1]
    assert any("zero output" in reason for reason in trace.meta["dropped"])


AZURE_HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens"
MOON = '{"timestamp": 1, "input_length": 700, "output_length": 6}'


@pytest.mark.parametrize(
    ("head", "bad", "field"),
    [
        (AZURE_HEAD, "2023-11-16 18:15:46.68,many,44", "ContextTokens"),
        (AZURE_HEAD, "2023-11-16 18:15:46.68,3,-4", "GeneratedTokens"),
        (AZURE_HEAD, "2023-11-16 18:15:46.68,3,4.5", "GeneratedTokens"),
        (AZURE_HEAD, "2023-11-16 18:15:46.68,3,99999999999", "GeneratedTokens"),
        (AZURE_HEAD, "yesterday,3,4", "TIMESTAMP"),
        (AZURE_HEAD, "2023-11-16 18:15:46.68,3", None),
        (AZURE_HEAD, "1923-11-16 18:15:46.68,3,4", "TIMESTAMP"),
        (MOON, '{"timestamp": NaN, "input_length": 7, "output_length": 6}', None),
        (MOON, '{"timestamp": 1e999, "input_length": 7, "output_length": 6}', "timestamp"),
        (MOON, '{"timestamp": "1", "input_length": true, "output_length": 6}', "input_length"),
        (MOON, '{"timestamp": 1, "input_length": 7}', "output_length"),
        (MOON, '{"input_length": 7, "output_length": 6}', "timestamp"),
        (MOON, '{"timestamp": 1, "input_length": 7, "output_length": 6, "hash_ids": [0, 1]}', "h"),
        (MOON, '{"timestamp": 1, "input_length": 7, "output_length": 6, "hash_ids": "x"}', "h"),
        (MOON, '{"timestamp": 1, "input_length": 7, "output_length": 6, "hash_ids": [1e30]}', "h"),
        (MOON, "[" * 100_000, None),
    ],
)
def test_bad_lines(tmp_path: Path, head: str, bad: str, field: str | None) -> None:
    good = MOON if head == MOON else "2023-11-16 18:15:46.68,3,4"
    path = tmp_path / "x"
    path.write_text("\n".join([head, good, bad, good]))
    with pytest.raises(DataError) as caught:
        import_trace(path)
    assert caught.value.line == 3
    assert caught.value.field == ("hash_ids" if field == "h" else field)
    trace = import_trace(path, skip_bad=True)
    assert len(trace) == (3 if head == MOON else 2)
    assert trace.meta["skipped"]["lines"] == 1


@pytest.mark.parametrize("content", [b"a,b,c\n1,2,3\n", b"\x00\x01\x02", b'{"x": 1}\n', b"{{{{\n"])
def test_unknown_format_lists_the_known_ones(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(UserError, match="known formats") as caught:
        import_trace(path)
    for name in format_names():
        assert name in str(caught.value)


def test_other_unusable_input(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"")
    with pytest.raises(DataError, match="no rows"):
        import_trace(path)
    path.write_text(AZURE_HEAD)
    with pytest.raises(DataError, match="no usable rows"):
        import_trace(path)
    with pytest.raises(UserError, match="no field"):
        import_trace(path, format="vidur")
    with pytest.raises(UserError, match="unknown trace format"):
        import_trace(path, format="nonsense")
    with pytest.raises(UserError, match="no such file"):
        import_trace(tmp_path / "absent")
    with pytest.raises(UserError, match=r"no chunk-N-trace\.csv"):
        import_trace(tmp_path)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(SAMPLES)), skip_bad=st.booleans())
def test_damaged_files_never_end_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, name: str, skip_bad: bool
) -> None:
    content = bytearray(SAMPLES[name][0].encode())
    junk = st.binary(max_size=4) | st.sampled_from([b"\n", b'"', b"-", b"9999999999", b"{", b"NaN"])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content)))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(junk)
    path = tmp_path_factory.mktemp("fuzz") / "x"
    path.write_bytes(content)
    try:
        trace = import_trace(path, skip_bad=skip_bad)
    except UserError:
        return
    assert len(trace) >= 1


def test_times_are_exact() -> None:
    assert date_ps("1970-01-01 00:00:01.0000001") == 1_000_000_100_000
    assert date_ps("1970-01-01 02:00:01.5+02:00") == 1_500_000_000_000
    assert date_ps("1970-01-01T00:00:02") == 2 * 10**12
    assert scaled_ps("0.1", "s") == 10**11
    for text in ("1970-01-01 00:00:01.", "x.5", "1970-13-01 00:00:00.5"):
        with pytest.raises(ValueError, match=r"."):
            date_ps(text)


def lengths(tokens: np.ndarray) -> list[int]:
    return [round(tokens.mean()), *np.rint(np.percentile(tokens, (50, 90, 99, 100))).astype(int)]


# Rows and statistics (mean, p50, p90, p99, max) as published with the original files.
FULL = {
    "azure_llm_2023/AzureLLMInferenceTrace_conv.csv.gz": (
        19366,
        [1155, 1020, 2734, 4142, 14050],
        [211, 129, 424, 601, 1000],
    ),
    "azure_llm_2023/AzureLLMInferenceTrace_code.csv.gz": (
        8819,
        [2048, 1469, 5188, 7436, 7437],
        [28, 13, 55, 251, 1899],
    ),
    "mooncake_fast25/conversation_trace.jsonl.gz": (
        12031,
        [12035, 6909, 27367, 85400, 126195],
        [343, 350, 597, 1119, 2000],
    ),
    "mooncake_fast25/synthetic_trace.jsonl.gz": (
        3993,
        [15325, 11587, 38611, 66456, 191378],
        [149, 69, 389, 768, 893],
    ),
    "vidur_arxiv_summarization/arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv.gz": (
        28257,
        [2588, 2730, 3702, 3933, 4054],
        [291, 167, 372, 3271, 4056],
    ),
    "apex_lengths/llama_creation_05.csv.gz": (
        512,
        [308, 309, 400, 566, 1232],
        [1144, 1106, 1708, 2341, 3501],
    ),
    "apex_lengths/llama_lmsys_05.csv.gz": (
        1024,
        [62, 17, 177, 586, 1037],
        [162, 117, 389, 533, 761],
    ),
    "apex_lengths/llama_summarization_05.csv.gz": (
        1302,
        [2753, 2943, 3880, 4075, 4092],
        [171, 162, 269, 357, 458],
    ),
    "apex_lengths/mistral_creation_05.csv.gz": (
        725,
        [356, 353, 440, 576, 1023],
        [761, 741, 982, 1210, 1716],
    ),
    "apex_lengths/mistral_lmsys_05.csv.gz": (
        1024,
        [73, 20, 215, 754, 1494],
        [189, 132, 473, 606, 1051],
    ),
    "apex_lengths/mistral_summarization_05.csv.gz": (
        1039,
        [2764, 2909, 3905, 4079, 4096],
        [186, 174, 294, 398, 575],
    ),
}


@pytest.mark.parametrize("file", FULL)
def test_full_public_file(file: str) -> None:
    path = SHARED / file
    if not path.exists():
        pytest.skip("the original trace is not here")
    rows, prompts, outputs = FULL[file]
    trace = import_trace(path)
    assert len(trace) == rows
    assert lengths(trace.prompt_tokens) == prompts
    assert lengths(trace.output_tokens) == outputs


def test_full_engine_logs() -> None:
    folder = SHARED / "llmservingsim_vllm_groundtruth"
    if not folder.exists():
        pytest.skip("the original logs are not here")
    run: Trace = import_trace(folder / "RTXPRO6000__Llama-3.1-8B" / "requests.jsonl")
    load = import_trace(folder / "sharegpt-llama-3.1-8b-300-sps10.hash16.jsonl.gz")
    # The engine ran exactly this workload, so lengths and nearly the arrivals agree.
    np.testing.assert_array_equal(run.prompt_tokens, load.prompt_tokens)
    np.testing.assert_array_equal(run.output_tokens, load.output_tokens)
    assert np.abs(run.arrival_ps - load.arrival_ps).max() < 0.1e12
    assert load.prefix_blocks.size == (load.prompt_tokens // 16).sum()
