"""Triton kernels for NVIDIA GPUs, one file per idea, each like a page of a tutorial.

A file `NAME.py` holds, in this order: what the kernel computes, how, how many bytes it moves and
FLOPs it does, and its floor; `NAME_reference`, the same in plain torch; the kernels; `NAME`, which
launches them; `NAME_work`, its FLOPs and bytes; and `AHEAD`, the cases that are compiled without a
GPU. `NAME` never waits for the device, and what it launches depends on shapes alone, so that a
CUDA graph can hold it. Nothing here knows rows, arenas or policies.
"""
