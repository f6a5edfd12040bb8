"""Passes of a block of GPU batches: each formula beside a plain simulation of its copies and
computations, layer by layer and batch by batch."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pytest

from batchgen.cost.api import PassLoad
from batchgen.cost.block import SCHEDULES, BlockSchedule, BlockWork
from batchgen.cost.build import build_cost
from batchgen.cost.capacity import capacity
from batchgen.cost.efficiency import Efficiency
from batchgen.cost.residency import Residency
from batchgen.cost.streamed import gpu_batches
from batchgen.errors import UserError
from batchgen.hardware import load_gpu
from batchgen.layout import parse_layout
from batchgen.model import load_model
from batchgen.planning import build_plan, plan_options
from batchgen.policy.presets import PRESETS

MIXTRAL, A5000, ONE = load_model("mixtral-8x7b"), load_gpu("a5000"), parse_layout("dp1", 1)


@dataclass
class Task:
    """A copy or computation: it waits in a queue of its stream for those before it there and for
    `after`. A stream serves one at a time, whatever can begin first."""

    stream: str
    queue: str
    duration: int
    after: tuple[Any, ...] = ()


def ends(tasks: dict[Any, Task]) -> dict[Any, int]:
    """When each task ends."""
    queues: dict[tuple[str, str], list[Any]] = {}
    for name, task in tasks.items():
        queues.setdefault((task.stream, task.queue), []).append(name)
    done: dict[Any, int] = {}
    free = dict.fromkeys({stream for stream, _ in queues}, 0)
    while any(queues.values()):
        able = []
        for order, (queue, names) in enumerate(queues.items()):
            if names and all(name in done for name in tasks[names[0]].after):
                since = max((done[name] for name in tasks[names[0]].after), default=0)
                able.append((max(since, free[queue[0]]), order, queue))
        begin, _, queue = min(able)
        name = queues[queue].pop(0)
        done[name] = free[queue[0]] = begin + tasks[name].duration
    return done


@dataclass
class Sizes:
    """Of one layer and GPU batch, but for the weights and what of them is read from disks, which
    are of a layer."""

    layers: int
    batches: int
    weights: int
    disk_weights: int
    up: int
    down: int
    read: int
    write: int
    gpu: int
    attention: int
    cpu: int

    @classmethod
    def drawn(cls, rng: random.Random, batches: int | None = None) -> Sizes:
        shape = rng.randint(2, 8), batches or rng.randint(1, 6)
        times = [rng.choice((0, 20, 400, 3000)) * rng.randint(0, 9) for _ in range(9)]
        sizes = cls(*shape, *times)
        return replace(sizes, attention=min(sizes.attention, sizes.gpu))

    def work(self, *, decoding: bool) -> BlockWork:
        def whole(time: int, of: int = 1) -> Any:
            return np.array([time * self.layers * of], dtype=np.int64)

        return BlockWork(
            weights=whole(self.weights),
            disk_weights=whole(self.disk_weights),
            up=whole(self.up, self.batches),
            down=whole(self.down, self.batches),
            disk_read=whole(self.read, self.batches),
            disk_write=whole(self.write, self.batches),
            gpu=whole(self.gpu, self.batches),
            attention=whole(self.attention, self.batches),
            cpu=whole(self.cpu, self.batches),
            decoding=np.array([decoding]),
            batches=np.array([self.batches]),
        )

    def pass_ps(self, kind: str, *, decoding: bool = True) -> int:
        schedule = BlockSchedule(kind=kind, num_layers=self.layers, num_batches=self.batches)
        return int(schedule.pass_ps(self.work(decoding=decoding))[0])


def zig_zag(sizes: Sizes, *, decoding: bool) -> int:
    """FlexGen's algorithm 1: in step (layer, batch) the next layer's weights (batch 0), the next
    batch's cache and hidden states, the last one's results, and the computation; then all wait for
    all. Decodes, as its authors fitted them: the copies from the host come first."""
    tasks: dict[Any, Task] = {}
    before: tuple[Any, ...] = ()
    for layer, batch in np.ndindex(sizes.layers, sizes.batches):
        at = (layer, batch)
        first = batch == 0
        disk = sizes.read + (sizes.disk_weights if first else 0)
        up = sizes.up + (sizes.weights if first else 0)
        computed = sizes.gpu + sizes.cpu
        if decoding:
            tasks["up", at] = Task("up", "", up, before)
            then = (("up", at),)
            tasks["read", at] = Task("read", "", disk, then)
            tasks["write", at] = Task("write", "", sizes.write, then)
            tasks["down", at] = Task("down", "", sizes.down, then)
            tasks["gpu", at] = Task("gpu", "", computed, then)
        else:
            tasks["up", at] = Task("up", "", up + disk, before)
            tasks["down", at] = Task("down", "", sizes.down + sizes.write, before)
            tasks["gpu", at] = Task("gpu", "", computed, before)
        before = tuple(name for name in tasks if name[1] == at)
    return max(ends(tasks).values())


@pytest.mark.parametrize("seed", range(40))
def test_zig_zag_is_algorithm_1(seed: int) -> None:
    sizes = Sizes.drawn(random.Random(seed))
    assert sizes.pass_ps("zig-zag", decoding=False) == zig_zag(sizes, decoding=False)
    even = replace(sizes, disk_weights=0)  # else a layer's weights make its first step the longest
    assert even.pass_ps("zig-zag") == zig_zag(even, decoding=True)
    least = sizes.pass_ps("zig-zag")  # with them, the sums of all steps are a lower bound
    assert least <= zig_zag(sizes, decoding=True) <= least + sizes.layers * sizes.disk_weights


@pytest.mark.parametrize("seed", range(40))
def test_layers_that_come_one_ahead(seed: int) -> None:
    """ZeRO-Inference: two layers have room, so that a layer is fetched while the one before it is
    computed; KV and results have streams of their own and never decide here."""
    sizes = replace(Sizes.drawn(random.Random(seed), 1), up=0, down=0, read=0, write=0, cpu=0)
    sizes = replace(sizes, disk_weights=0)
    tasks = {}
    for layer in range(sizes.layers):
        room = (("gpu", layer - 2),) if layer > 1 else ()
        tasks["up", layer] = Task("up", "", sizes.weights, room)
        tasks["gpu", layer] = Task("gpu", "", sizes.gpu, (("up", layer),))
    assert sizes.pass_ps("layer-ahead") == max(ends(tasks).values())


def cgopipe(sizes: Sizes) -> int:
    """CGOPipe: a micro-batch goes from the GPU (what follows attention, then the projections of the
    next layer) down the link, to the CPU, up the link and to the GPU again; pages of the next
    layer's weights cross the link between the hidden states. Weights of two layers have room; those
    of the first came in the pass before."""
    layers, batches = sizes.layers, sizes.batches
    tasks: dict[Any, Task] = {}
    for layer, batch in np.ndindex(layers, batches):
        at = (layer, batch)
        came = (("page", layer, batches - 1), ("up", layer - 1, batch)) if layer else ()
        tasks["gpu", *at] = Task("gpu", "", sizes.gpu, came)
        tasks["down", *at] = Task("down", "", sizes.down, (("gpu", *at),))
        tasks["cpu", *at] = Task("cpu", "", sizes.cpu, (("down", *at),))
        tasks["up", *at] = Task("link", "hidden", sizes.up, (("cpu", *at),))
        left = (("gpu", layer - 1, batches - 1),) if layer else ()
        page = sizes.weights // batches
        tasks["page", layer + 1, batch] = Task("link", "pages", page, left)
    return max(ends(tasks).values())


@pytest.mark.parametrize("batches", [2, 4, 8, 16])
def test_cgopipe_is_as_long_as_its_busiest_resource_and_one_fill(batches: int) -> None:
    """No run of the pipeline is shorter than its busiest resource, or than a micro-batch's own way;
    the formula adds one fill. Beyond that hidden states wait for the page that is under way."""
    worst = {2: 0.35, 4: 0.25, 8: 0.15, 16: 0.1}[batches]
    rng = random.Random(batches)
    for _ in range(60):
        sizes = replace(Sizes.drawn(rng, batches), disk_weights=0, read=0, write=0)
        sizes = replace(sizes, weights=sizes.weights * batches, gpu=sizes.gpu + 1)
        found, formula = cgopipe(sizes), sizes.pass_ps("cgopipe")
        once = sizes.up + sizes.down + sizes.gpu + sizes.cpu
        link = sizes.weights + sizes.up * batches
        busiest = max(link, *(one * batches for one in (sizes.down, sizes.gpu, sizes.cpu)), once)
        assert formula == busiest * sizes.layers + once
        assert busiest * sizes.layers <= found
        assert found == pytest.approx(formula, rel=worst)


@pytest.mark.parametrize("seed", range(20))
def test_kernels_that_read_weights_of_the_host(seed: int) -> None:
    """vLLM's CPU offload: a product lasts as long as its weights cross the link, attention
    follows. There is one GPU batch: several would read the weights anew."""
    sizes = replace(Sizes.drawn(random.Random(seed), 1), down=0, read=0, write=0, cpu=0, up=0)
    sizes = replace(sizes, disk_weights=0)
    products = max(sizes.weights, sizes.gpu - sizes.attention)
    assert sizes.pass_ps("as-read") == sizes.layers * (products + sizes.attention)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_times_rise_and_never_faster_at_first(kind: str) -> None:
    """Convex and rising in every time, but for the rounding of single picoseconds."""
    rng = random.Random(kind)
    names = [one.name for one in fields(BlockWork) if one.name not in ("decoding", "batches")]
    for _ in range(60):
        sizes, name, decoding = Sizes.drawn(rng), rng.choice(names), rng.random() < 0.5
        schedule = BlockSchedule(kind=kind, num_layers=sizes.layers)
        work = sizes.work(decoding=decoding)
        step = rng.randint(1, 10**5)
        times = []
        for k in range(3):
            more = {name: getattr(work, name) + k * step}
            if name == "attention":  # a part of what the GPU computes
                more["gpu"] = work.gpu + k * step
            times.append(int(schedule.pass_ps(replace(work, **more))[0]))
        assert times[0] <= times[1] <= times[2]
        assert times[1] - times[0] <= times[2] - times[1] + 4
        fetched = work.weights + work.up
        assert times[0] >= max(int(one[0]) for one in (fetched, work.down, work.gpu, work.cpu))


def test_gpu_batches_hold_what_the_pass_holds() -> None:
    rng = random.Random(3)
    for _ in range(200):
        ranks, batches = rng.randint(1, 3), rng.randint(1, 9)
        load = PassLoad.zeros(ranks, 4)
        for at in np.ndindex(ranks, 4):
            rows, tokens = rng.choice((0, 1, 5, 300)), rng.choice((0, 1, 4, 999))
            load.decodes[at], load.context[at] = rows, rows * rng.randint(1, 5000)
            load.chunk_tokens[at], load.chunk_pairs[at] = tokens, tokens * rng.randint(1, 10**6)
            load.chunk_reads[at] = tokens * rng.randint(0, 9)
            load.samples[at] = rows + bool(tokens)
        cut = gpu_batches(load, batches)
        assert cut.num_passes <= 4 * batches
        for one in fields(PassLoad):
            whole = getattr(cut, one.name).reshape(ranks, -1, 4)
            assert (whole.sum(axis=1) == getattr(load, one.name)).all()
        rows = cut.decodes.reshape(ranks, -1, 4)
        assert (rows.max(axis=1) - rows.min(axis=1) <= 1).all()
        assert not (cut.context[cut.decodes == 0]).any()
        assert not (cut.chunk_pairs[cut.chunk_tokens == 0]).any()
        assert not (cut.samples[(cut.decodes + cut.chunk_tokens) == 0]).any()


def streamed(kind: str, batches: int, **more: Any) -> Any:
    places = Residency(weights="layers", kv="host", attention="cpu", gpu_batches=batches)
    return build_cost(
        MIXTRAL,
        A5000,
        ONE,
        gpus_per_node=1,
        residency=places,
        streamed_bytes=9 * 10**10,
        efficiency=Efficiency(block_schedule=kind, **more),
    )


@pytest.mark.parametrize("kind", [kind for kind in SCHEDULES if kind != "as-read"])
def test_a_block_reads_weights_of_hbm_for_each_gpu_batch(kind: str) -> None:
    """Weights cross the link once however many GPU batches there are, and are read of HBM by each;
    hidden states of all tokens cross both ways. One GPU batch moves none."""
    load = PassLoad.zeros(1, 1)
    load.decodes[:], load.context[:], load.samples[:] = 600, 600 * 500, 600
    one, six = streamed(kind, 1), streamed(kind, 6)
    hidden = 600 * MIXTRAL.num_layers * MIXTRAL.hidden * 2 / (32e9 * 0.8) * 1e12
    for before, after in zip(one.streams_ps(load), six.streams_ps(load), strict=True):
        assert int(after[0]) - int(before[0]) == pytest.approx(hidden, rel=1e-3)
    each = replace(load, decodes=load.decodes // 6, samples=load.samples // 6)
    each = replace(each, context=np.zeros_like(load.context))
    alone = int(one.inner.pass_ps(each)[0])
    assert six.breakdown(load)["experts"][0] == 6 * one.breakdown(each)["experts"][0]
    work = six.pass_ps(load)[0]
    assert work >= 6 * alone
    assert six.time_ps([(600, 600 * 500, 0, 0, 0, 600, 0)]) == work


def test_engines_of_a_node_fetch_a_layer_together() -> None:
    """ZeRO-Inference: each of four GPUs fetches a quarter over its own link and gets the rest from
    the others; on eight engines of a machine without such links that is slower."""
    h100 = replace(load_gpu("h100"), node_host_bytes_per_s=256e9)

    def fetched(gathered: bool) -> float:
        cost = build_cost(
            MIXTRAL,
            h100,
            parse_layout("dp4", 4),
            gpus_per_node=4,
            residency=Residency(weights="layers"),
            streamed_bytes=9 * 10**10,
            efficiency=Efficiency(block_schedule="layer-ahead", gathered_layers=gathered),
        )
        return cost.streams_ps(one_row())[0][0] / 1e12

    link = 64e9 * 0.8
    gathered = 9e10 * 3 / 4 / (h100.intra_bytes_per_s * 0.7)
    assert fetched(False) == pytest.approx(9e10 / link)
    assert fetched(True) == pytest.approx(9e10 / 4 / link + gathered)


def one_row() -> PassLoad:
    load = PassLoad.zeros(1, 1)
    load.decodes[:], load.context[:], load.samples[:] = 1, 100, 1
    return load


def test_only_one_gpu_batch_has_its_activations_on_the_gpu() -> None:
    places = Residency(weights="layers", kv="host", attention="cpu")
    one = capacity(MIXTRAL, A5000, ONE, residency=places, token_budget=8192, max_num_seqs=256)
    four = replace(places, gpu_batches=4)
    block = capacity(MIXTRAL, A5000, ONE, residency=four, token_budget=32768, max_num_seqs=1024)
    assert block.workspace_bytes == one.workspace_bytes
    staged = 32768 * MIXTRAL.hidden * 2 * 0.9 / MIXTRAL.kv_bytes_per_token / 64
    assert one.hbm_pages - block.hbm_pages == pytest.approx(staged, abs=2)


def test_sizes_of_a_pass_are_those_of_all_its_gpu_batches() -> None:
    def plan(**options: str) -> Any:
        given = {"plan.weights": "layers", "plan.kv": "host"}
        more = plan_options(given | {f"plan.{name}": text for name, text in options.items()})
        made, _ = build_plan(
            MIXTRAL,
            A5000,
            ONE,
            PRESETS["static"],
            gpus_per_node=1,
            max_context=4096,
            options=more,
        )
        return made.token_budget, made.max_num_seqs

    assert plan() == (8192, 256)
    assert plan(gpu_batches="3") == (3 * 8192, 3 * 256)
    assert plan(gpu_batches="3", token_budget="999", max_num_seqs="30") == (999, 30)


REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: plan_options({"plan.gpu_batches": "0"}), r"plan\.gpu_batches=0.*from 1 to 1024"),
    (lambda: plan_options({"plan.gpu_batches": "2"}).residency, r"plan\.gpu_batches divides"),
    (lambda: plan_options({"plan.resident_share": "0.5"}).residency, r"plan\.weights=layers"),
    (lambda: streamed("as-read", 2), r"plan\.gpu_batches=2: .*as-read has no block"),
    (lambda: streamed("zig-zag", 2, stream_theta=0.5), r"cost\.block_schedule=zig-zag has"),
]


@pytest.mark.parametrize(("given", "said"), REFUSED)
def test_what_goes_with_nothing_is_refused(given: Callable[[], object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        given()
