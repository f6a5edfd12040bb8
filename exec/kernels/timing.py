"""How long a call takes on a GPU: the median of events around replays of a CUDA graph.

A graph, because a kernel of a few microseconds is shorter than its launch by Python. Calls rotate
over several sets of buffers, so that none finds its data in the cache of the last one.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch

Call = Callable[[], object]
WARM_UP = 3
REPEATS = 11
ROUND_S = 2e-3  # of calls in a round, so that the resolution of events (0.5 us) is nothing
MOST_CALLS = 128
CACHES = 4  # a rotation touches so many times what the cache holds
MOST_COPIES = 64


def num_copies(bytes_of_call: float, device: torch.device) -> int:
    """Sets of buffers that a rotation needs."""
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return min(MOST_COPIES, int(CACHES * cache / max(bytes_of_call, 1.0)) + 1)


def median_s(calls: Sequence[Call], *, repeats: int = REPEATS, graph: bool = True) -> float:
    """Seconds of one call. `graph`: whether the calls may be captured, which forbids waiting."""
    for call in calls:
        call()
    guess_s = _round_s(lambda: [call() for call in calls], WARM_UP) / len(calls)
    count = max(len(calls), min(MOST_CALLS, int(ROUND_S / max(guess_s, 1e-9))))
    turns = [calls[i % len(calls)] for i in range(count)]

    def play() -> None:
        for call in turns:
            call()

    replay: Call = play
    if graph:
        recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recorded):
            play()
        replay = recorded.replay
    replay()
    return _round_s(replay, repeats) / count


def _round_s(play: Call, repeats: int) -> float:
    """Median time of a round, each between two events of its own."""
    pairs = []
    torch.cuda.synchronize()
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        play()
        end.record()
        pairs.append((begin, end))
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in pairs) / 1e3
