"""Published speeds of weights and KV on host and disk: direction, and size where a tier decides."""

from __future__ import annotations

from pathlib import Path

import pytest
from offload_script import ROOT, load_script


def test_points_and_their_table(tmp_path: Path) -> None:
    script = load_script()
    found = {point: script.simulated(point, tmp_path) for point in script.POINTS}
    page = (ROOT / "docs" / "cost-model.md").read_text()
    ratios: dict[tuple[str, str], list[float]] = {}
    for point, speed in found.items():
        ratio = speed / point.tokens_per_s
        line = f"| {point.prompt} | {point.rows} | {point.tokens_per_s:.2f} | {speed:.2f} | "
        assert f"| {point.system} | {point.model} {line}{ratio:.2f} |" in page
        ratios.setdefault((point.system, point.model), []).append(ratio)
    # Bound by the disk, by the link, by the CPU and the link after it.
    assert all(abs(ratio - 1) < 0.25 for ratio in ratios["FlexGen", "OPT-175B"])
    assert all(1 < ratio < 1.65 for ratio in ratios["ZeRO-Inference", "OPT-30B"])
    assert all(abs(ratio - 1) < 0.08 for ratio in ratios["FlexGen", "OPT-30B"])
    # Orders within a system, and of a model; the page says which come out otherwise.
    for kind in ("system", "model"):
        for name in {getattr(point, kind) for point in script.POINTS}:
            alike = [point for point in script.POINTS if getattr(point, kind) == name]
            published = sorted(alike, key=lambda point: point.tokens_per_s)
            assert published == sorted(alike, key=lambda point: found[point])


def test_weights_on_a_slower_disk_are_slower(tmp_path: Path) -> None:
    """ZeRO-Inference: 43 tokens per second from the host, 30 from NVMe (OPT-30B on a V100)."""
    script = load_script()
    host = next(point for point in script.POINTS if point.system == "ZeRO-Inference")
    disk = script.Point(
        system=host.system,
        model=host.model,
        prompt=host.prompt,
        rows=host.rows,
        plan={"weights": "disk"},
        tokens_per_s=0.0,
    )
    link = 0.879 * 15.75e9
    speeds = [
        script.simulated(disk, tmp_path, **{"cost.disk_read_bytes_per_s": f"{rate:g}"})
        for rate in (2 * link, link / 1.43, link / 6)
    ]
    alone = script.simulated(host, tmp_path)
    # Beside a layer that comes from the disk another crosses the link, but for the first and the
    # last (48 layers).
    assert [alone / speed for speed in speeds] == pytest.approx([1.0, 1.43, 6.0], rel=1 / 48)
