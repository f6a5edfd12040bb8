"""Mixes have the density and the sharing that were asked for."""

from __future__ import annotations

import pytest

from batchgen.catalog.blend import MIXES
from batchgen.errors import UserError
from batchgen.trace.mixes import Mix, Rates, mix, optimum_s, shared_tokens

RATES = Rates(token_s=7.4e-5, pair_s=1.8e-9, read_s=7.6e-8)


@pytest.mark.parametrize(("density", "sharing"), MIXES)
def test_density_and_sharing(density: float, sharing: float) -> None:
    wanted = Mix(num_rows=20_000, density=density, sharing=sharing, video_tokens=4096)
    trace, kinds = mix(wanted, RATES)
    compute, memory = optimum_s(trace, RATES)
    assert kinds.chats + kinds.questions + kinds.videos == len(trace)
    assert compute / memory == pytest.approx(density, rel=0.06)
    assert shared_tokens(trace) / trace.prompt_tokens.sum() == pytest.approx(sharing, abs=0.02)


def test_what_no_mix_has_is_refused() -> None:
    with pytest.raises(UserError, match="no mix of 1000 rows"):
        mix(Mix(num_rows=1000, density=500.0, sharing=0.05), RATES)
    with pytest.raises(UserError, match="at least 100"):
        Mix(num_rows=3, density=1.0, sharing=0.1)
