"""What a cell of a notebook shows: small, repeatable pictures, and metrics as the table prints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from batchgen.report import style, text
from batchgen.report.notebook import COLOURS, picture, table
from batchgen.sim.run import simulate
from batchgen.simjob import SimJob


def drawn(points: int) -> bytes:
    with style.figures() as plt:
        figure, axis = plt.subplots(figsize=(3, 2))
        axis.scatter(np.arange(points), np.arange(points) ** 2, c=np.arange(points))
        axis.set_title("Squares")
        shown = picture(figure)
    assert repr(shown) == "<Squares>"
    return shown._repr_png_()


def test_a_picture_is_a_small_png_of_few_colours_and_repeatable() -> None:
    from io import BytesIO

    from PIL import Image

    png = drawn(300)
    image = Image.open(BytesIO(png))
    assert image.size == (300, 200)
    assert len(image.convert("RGB").getcolors(1 << 24)) <= COLOURS
    assert png == drawn(300)
    assert png != drawn(20)


def test_a_picture_of_a_file(tmp_path: Path) -> None:
    with style.figures() as plt:
        figure, _ = plt.subplots(figsize=(1, 1))
        style.save(figure, tmp_path / "empty.png")
    shown = picture(tmp_path / "empty.png")
    assert repr(shown) == "<empty>"
    assert len(shown._repr_png_()) <= (tmp_path / "empty.png").stat().st_size


@pytest.fixture(scope="module")
def summaries() -> list[dict[str, object]]:
    from batchgen.report.metrics import summary

    trace = str(Path(__file__).parents[2] / "traces" / "azure-conv-2023.jsonl.gz")
    jobs = [
        SimJob(trace=trace, model="qwen3-32b", gpu="h100", gpus=1, limit=40, policy=policy)
        for policy in ("vllm", "static")
    ]
    return [summary(simulate(job)) for job in jobs]


def test_a_table_says_what_the_command_prints(summaries: list[dict[str, object]]) -> None:
    found = table(summaries, "bct_s", "slowdown", "known_error")
    assert list(found.columns) == ["vllm", "static"]
    assert list(found.index) == ["batch completion time", "against the fastest", "known error"]
    times = [float(one["bct_s"]) for one in summaries]  # type: ignore[arg-type]
    assert list(found.iloc[0]) == [text.duration(time) for time in times]
    assert list(found.iloc[1]) == [text.ratio(time / min(times)) for time in times]
    assert "none measured" in set(found.iloc[2])


def test_a_table_of_an_unknown_metric_is_refused(summaries: list[dict[str, object]]) -> None:
    with pytest.raises(KeyError, match="nonsense"):
        table(summaries, "nonsense")
