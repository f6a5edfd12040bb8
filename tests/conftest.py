"""One rule for all property tests: the same examples in every run of `make test`.

`make soak` sets BATCHGEN_SOAK and draws new ones each time, so that the search goes on.
"""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("fixed", derandomize=True)
settings.register_profile("soak", derandomize=False)
settings.load_profile("soak" if os.environ.get("BATCHGEN_SOAK") else "fixed")
