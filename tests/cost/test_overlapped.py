"""Overlap of decode attention: the formula, and scalars equal to arrays."""

from __future__ import annotations

import random

import numpy as np
import pytest

from batchgen.cost.api import PassLoad
from batchgen.cost.build import build_cost
from batchgen.cost.efficiency import Efficiency
from batchgen.hardware import load_gpu
from batchgen.layout import parse_layout
from batchgen.machine import resolve
from batchgen.model import load_model
from batchgen.runtime.advisor import HOME
from batchgen.simjob import SimJob


@pytest.mark.parametrize("theta", [0.0, 0.3, 1.0])
def test_the_shorter_part_is_hidden(theta: float) -> None:
    model, gpu, layout = load_model("llama-3-8b"), load_gpu("a100"), parse_layout("tp1", 1)
    plain = build_cost(model, gpu, layout)
    cost = build_cost(model, gpu, layout, efficiency=Efficiency(attention_theta=theta))
    rng = random.Random(1)
    for _ in range(50):
        decodes, prompts = rng.randint(1, 300), rng.choice((0, 100, 5000))
        context = decodes * rng.randint(1, 9000)
        load = (decodes, context, prompts, prompts * prompts, 0, decodes, 0)
        compute = plain.pass_one_ps(decodes, 0, *load[2:])
        attention = plain.pass_one_ps(*load) - compute
        wanted = max(compute, attention) + round(theta * min(compute, attention))
        assert cost.pass_one_ps(*load) == cost.time_ps([load]) == wanted
        arrays = PassLoad(*(np.array([[one]], dtype=np.int64) for one in load))
        assert cost.pass_ps(arrays).tolist() == [wanted]
    assert cost.pass_one_ps(0, 0) == 0


def test_a_tail_may_change_its_layout_where_attention_overlaps() -> None:
    """What makes times depend on single rows (`detailed`) is no reason to stay; an operator profile
    of one layout is."""
    job = SimJob(
        trace="none",
        gpus=16,
        layout="tp2+dpa8+ep16",
        overrides=(("cost.attention_theta", "0.3"),),
    )
    planner = resolve(job, 0.0).planner
    assert planner.home.detailed
    offer = planner.partition(0, [8000, 9000], HOME)
    assert offer.layout != HOME
    assert offer.then_ps < offer.now_ps
    planner.only_home = True
    assert planner.partition(0, [8000, 9000], HOME).layout == HOME
    assert planner.tails() == []
