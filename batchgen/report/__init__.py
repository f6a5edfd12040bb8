"""Reports: metrics, run directories, tables, plots and timelines. Reads records, runs nothing.

Import the parts by full path; this package root loads nothing heavy.
"""

from __future__ import annotations
