"""Cost models behind one interface (`batchgen.cost.api`). This file loads nothing.

`batchgen.cost.build.build_cost` makes a model, `batchgen.cost.capacity.capacity` its page counts.
"""

from __future__ import annotations
