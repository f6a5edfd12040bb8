"""Draws from ServeGen client sets: counts, lengths, burstiness, determinism, bad files."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest

from batchgen.errors import DataError, UserError
from batchgen.trace import Trace
from batchgen.trace.formats.registry import detect, import_trace
from batchgen.trace.formats.servegen import ServeGenOptions, generate_servegen

SHARED = Path(__file__).parents[2].parent / "shared" / "traces" / "servegen"


def client_set(folder: Path) -> Path:
    """Two clients: a busy one with two windows, a slow bursty one; a third without lengths."""
    folder.mkdir()
    (folder / "chunk-0-trace.csv").write_text(
        "0,10.0,1.0,Gamma,1.0,0.1\n600,0,0,,0,0\n1200,20.0,1.0,Weibull,1.0,0.05\n"
    )
    (folder / "chunk-0-dataset.json").write_text(
        '{"0": {"input_tokens": "{100: 0.25, 200: 0.75}", "output_tokens": "{5: 1.0}"},'
        ' "1200": {"input_tokens": "{300: 1.0}", "output_tokens": "{0: 0.5, 7: 0.5}"}}'
    )
    (folder / "chunk-1-trace.csv").write_text("0,1.0,4.0,Gamma,0.0625,16\n")
    (folder / "chunk-1-dataset.json").write_text(
        '{"0": {"input_tokens": "{}", "output_tokens": "{}"},'
        ' "21600": {"input_tokens": "{1: 1.0}", "output_tokens": "{9: 1.0}"}}'
    )
    (folder / "chunk-2-trace.csv").write_text("0,1.0,1.0,Gamma,1.0,1.0\n")
    return folder


def columns(trace: Trace) -> tuple[list[int], ...]:
    return (trace.prompt_tokens.tolist(), trace.output_tokens.tolist(), trace.arrival_ps.tolist())


def test_recorded_rates_and_tables_come_out(tmp_path: Path) -> None:
    folder = client_set(tmp_path / "set")
    assert detect(folder) == "servegen"
    trace = generate_servegen(folder, ServeGenOptions(num_requests=None))
    seconds = trace.arrival_ps / 1e12
    busy_early = (trace.output_tokens == 5).sum()
    # Poisson: 6,000 expected with standard deviation 77; bounds at five of them.
    assert abs(busy_early - 6000) < 390
    busy_late = trace.output_tokens == 7
    assert abs(busy_late.sum() - 6000) < 5 * np.sqrt(6000 * 1.5)
    assert seconds[busy_late].min() > 1100
    share = (trace.prompt_tokens == 200).sum() / busy_early
    assert abs(share - 0.75) < 0.03
    assert trace.meta["dropped"] == {
        "zero tokens drawn from a length table": pytest.approx(6000, abs=400)
    }
    assert trace.meta["clients_without_lengths"] == [2]
    assert (np.diff(trace.arrival_ps) >= 0).all()


def test_burstiness_follows_the_window(tmp_path: Path) -> None:
    folder = client_set(tmp_path / "set")
    trace = generate_servegen(folder, ServeGenOptions(num_requests=None, rate_scale=20.0))
    for tokens, variation in ((5, 1.0), (9, 4.0)):
        gaps = np.diff(trace.arrival_ps[trace.output_tokens == tokens])
        assert gaps.std() / gaps.mean() == pytest.approx(variation, rel=0.15)


def test_exact_number_seed_part_and_archive(tmp_path: Path) -> None:
    folder = client_set(tmp_path / "set")
    archive = tmp_path / "set.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        for file in sorted(folder.iterdir(), reverse=True):
            packed.add(file, arcname=f"a/b/{file.name}")
    options = ServeGenOptions(num_requests=500, seed=3)
    trace = import_trace(folder, servegen=options)
    assert len(trace) == 500
    assert columns(import_trace(archive, servegen=options)) == columns(trace)
    other = import_trace(folder, servegen=ServeGenOptions(num_requests=500, seed=4))
    assert columns(other) != columns(trace)
    part = ServeGenOptions(num_requests=100, start_s=1300, duration_s=10)
    drawn = generate_servegen(folder, part)
    assert drawn.arrival_ps.max() <= 10e12
    assert set(drawn.prompt_tokens.tolist()) <= {300}
    with pytest.raises(UserError, match="the limit is"):
        generate_servegen(folder, ServeGenOptions(num_requests=None, rate_scale=1e5))
    with pytest.raises(DataError, match="no client has both"):
        generate_servegen(folder, ServeGenOptions(start_s=1e6))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("chunk-0-trace.csv", "0,1.0\n"),
        ("chunk-0-trace.csv", "0,-1.0,1,Gamma,1,1\n"),
        ("chunk-0-trace.csv", "0,1.0,1,Zeta,1,1\n"),
        ("chunk-0-dataset.json", "{"),
        ("chunk-0-dataset.json", '{"0": {"input_tokens": "{1}", "output_tokens": "{1: 1}"}}'),
        ("chunk-0-dataset.json", '{"0": {"input_tokens": "{1: -1}", "output_tokens": "{1: 1}"}}'),
    ],
)
def test_bad_client_files(tmp_path: Path, file: str, content: str) -> None:
    folder = client_set(tmp_path / "set")
    (folder / file).write_text(content)
    with pytest.raises(DataError, match=file):
        generate_servegen(folder, ServeGenOptions())


def test_bad_options() -> None:
    for wrong in ({"num_requests": 0}, {"rate_scale": 0.0}, {"start_s": -1}, {"duration_s": 0}):
        with pytest.raises(UserError):
            ServeGenOptions(**wrong)


@pytest.mark.parametrize("name", ["reason_deepseek-r1", "multimodal_mm-image"])
def test_full_client_set(name: str) -> None:
    path = SHARED / f"{name}.tar.gz"
    if not path.exists():
        pytest.skip("the original client set is not here")
    trace = import_trace(path, servegen=ServeGenOptions(num_requests=2000))
    assert len(trace) == 2000
    assert 80_000 < trace.arrival_ps.max() / 1e12 <= 86_400
