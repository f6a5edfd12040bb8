"""What single kernels take on a GPU: measured points, a floor by physics, a fitted surface over it.

One file per kind of kernel (`gemm`, `attention`, `experts`, `collectives`) says its floor and what
its time beyond the floor may depend on; `fitted` fits and predicts, `tables` reads published
tables, `store` keeps what was fitted.
"""
