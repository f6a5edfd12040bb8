"""Device trouble of a run: slow, lost, noticed and returning devices, read from a JSONL file.

One object per line: {"at_s": 120.0, "kind": "slow", "gpu": 3, "factor": 2.0, "for_s": 600} ;
{"at_s": 60, "kind": "lost", "gpu": 17} ; {"at_s": 50, "kind": "notice", "gpu": 17, "deadline_s":
60} ;
{"at_s": 900, "kind": "back", "gpu": 17}. A lockstep engine is as slow as its slowest GPU and is
lost
with any of its GPUs.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from batchgen.errors import DataError
from batchgen.job.jsonl import BOM
from batchgen.paths import check_input
from batchgen.units import to_ps

MAX_S = 4_000_000  # a time and a spell on top of it stay inside int64 picoseconds
FACTORS = (0.001, 1000.0)  # factors are kept in thousandths
NORMAL_SPEED = 1000
KINDS = ("slow", "lost", "notice", "back")


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    at_s: float
    kind: str
    gpu: int
    factor: float = 0.0
    for_s: float = 0.0
    deadline_s: float = 0.0


STANDING = -1
"""The spell of a slow line without an end: it stands until the next such line of its GPU."""


class Fault(msgspec.Struct, frozen=True):
    """One change of one device. `speed` is the pass time in thousandths of normal (kind "slow"),
    for the trouble `spell`; 1000 ends it."""

    at_ps: int
    kind: str
    gpu: int
    speed: int = 1000
    deadline_ps: int = 0
    spell: int = STANDING

    def text(self) -> str:
        """For a person."""
        what = {"slow": f"slow x{self.speed / 1000:g}"}.get(self.kind, self.kind)
        if self.kind == "slow" and self.speed == NORMAL_SPEED:
            what = "back to speed"
        return f"{what} (gpu {self.gpu})"


class Troubles:
    """Slowness of the GPUs of one engine. Several troubles of a GPU compose: the worst counts, and
    it is healed when all are over. A lockstep engine is as slow as its slowest GPU."""

    def __init__(self, num_gpus: int) -> None:
        self._num_gpus = num_gpus
        self._spells: dict[int, dict[int, int]] = {}  # gpu -> spell -> factor

    def change(self, gpu: int, fault: Fault) -> None:
        """A trouble of a GPU begins, changes or ends."""
        spells = self._spells.setdefault(gpu, {})
        spells.pop(fault.spell, None)
        if fault.speed != NORMAL_SPEED:
            spells[fault.spell] = fault.speed
        if not spells:
            del self._spells[gpu]

    @property
    def speed(self) -> int:
        """Pass time of the engine in thousandths of normal."""
        factors = [max(spells.values()) for spells in self._spells.values()]
        if len(factors) < self._num_gpus:
            factors.append(NORMAL_SPEED)
        return max(factors)


def load_faults(path: str, num_gpus: int) -> list[Fault]:
    """Faults in time order; a slow spell with `for_s` ends by itself. Raises DataError per bad
    line."""
    file = Path(path)
    check_input("faults file", path, remedy="give a JSONL file")
    faults: list[Fault] = []
    decoder = msgspec.json.Decoder(_Line)
    for number, raw in enumerate(file.read_bytes().removeprefix(BOM).split(b"\n"), start=1):
        if not raw.strip():
            continue
        try:
            line = decoder.decode(raw)
        except msgspec.DecodeError as error:
            raise DataError(str(error), path=path, line=number) from None
        if line.kind not in KINDS:
            raise DataError(
                f"'{line.kind}' is no kind of fault",
                path=path,
                line=number,
                field="kind",
                remedy=f"use one of {', '.join(KINDS)}",
            )
        if not 0 <= line.gpu < num_gpus:
            raise DataError(
                f"GPU {line.gpu} is not in this cluster",
                path=path,
                line=number,
                field="gpu",
                remedy=f"use 0 to {num_gpus - 1}",
            )
        for name in ("at_s", "for_s", "deadline_s"):
            if not 0 <= getattr(line, name) <= MAX_S:
                raise DataError(
                    f"{getattr(line, name)} is not a time from 0 to {MAX_S} s",
                    path=path,
                    line=number,
                    field=name,
                    remedy="give seconds from the start of the run",
                )
        at_ps = to_ps(line.at_s)
        if line.kind == "slow":
            if not FACTORS[0] <= line.factor <= FACTORS[1]:
                raise DataError(
                    f"a slow device needs a factor from {FACTORS[0]} to {FACTORS[1]}",
                    path=path,
                    line=number,
                    field="factor",
                    remedy="2.0 makes every pass take twice as long",
                )
            spell = number if line.for_s else STANDING
            faults.append(Fault(at_ps, "slow", line.gpu, round(line.factor * 1000), spell=spell))
            if line.for_s:
                end_ps = at_ps + to_ps(line.for_s)
                faults.append(Fault(end_ps, "slow", line.gpu, NORMAL_SPEED, spell=spell))
        elif line.kind == "notice":
            faults.append(Fault(at_ps, "notice", line.gpu, 1000, to_ps(line.deadline_s)))
        else:
            faults.append(Fault(at_ps, line.kind, line.gpu))
    return sorted(faults, key=lambda fault: (fault.at_ps, fault.gpu))
