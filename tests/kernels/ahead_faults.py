"""Cases that `ahead` must refuse, each for one reason."""

from __future__ import annotations

import dataclasses

from ahead_kernels import double, product

AHEAD = (
    product("assembler", 64, options={"maxnreg": 32}),
    product("shared memory", 64, depth=1024),
    product("idle tensor cores", 16, tensor_cores=True),
    double("not for sm_90", capabilities=(80,)),
    dataclasses.replace(double("no such type"), signature={"x": "*fp32", "count": "i32"}),
)
