"""Device traces: what happens to the GPUs of a cluster while a batch runs.

Nothing here simulates anything. Formats, generator, statistics and pictures are imported by their
full path; the root offers what every user of a device trace needs.
"""

from __future__ import annotations

from batchgen.trace.devices.compose import Change, compose
from batchgen.trace.devices.events import DeviceTrace, Trouble
from batchgen.trace.devices.read import load
from batchgen.trace.devices.write import save

__all__ = ["Change", "DeviceTrace", "Trouble", "compose", "load", "save"]
