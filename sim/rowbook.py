"""What the simulator alone knows of rows: true lengths, and when each ends. Columns, no decisions.

`finish` is the decode clock of the pass that computes a row's last token, as its rank counts; NEVER
while the row is in no running set. It is the simulator's own book, kept from actions alone, apart
from the core's.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from batchgen.sequence import Table

NEVER = -(1 << 60)
LOW = (1 << 32) - 1


class RowBook:
    """Columns over all rows.

    total: output tokens that the row will have produced when it ends (its stage). offset: computed
    tokens less the decode clock of its rank while it decodes. counted: 1 while it is in its
    engine's running set. device: the engine whose heap has the row. rank: where it is counted, with
    several ranks (the table's may be newer).
    """

    def __init__(self, table: Table, true_output: NDArray[Any]) -> None:
        rows = len(table)
        self.table = table
        self.total = array("q", np.asarray(true_output, dtype=np.int64).tobytes())
        self.finish = array("q", [NEVER]) * rows
        self.offset = array("q", [0]) * rows
        self.counted = bytearray(rows)
        self.device = array("h", [-1]) * rows
        self.rank = array("h", [0]) * rows
