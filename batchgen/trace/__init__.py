"""Traces: the load of a batch. Schema, readers of public formats, generators, statistics.

Nothing here decides how a load is scheduled. Formats, generators and plots are imported by their
full path; the root offers what every user of a trace needs.
"""

from __future__ import annotations

from batchgen.trace.schema import load
from batchgen.trace.table import Trace, TraceBuilder, make_trace
from batchgen.trace.write import save

__all__ = ["Trace", "TraceBuilder", "load", "make_trace", "save"]
