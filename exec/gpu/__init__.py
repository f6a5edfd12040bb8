"""The executor's runner for GPUs: passes are queued on streams and known a pass later.

Nothing here decides; `exec.worker` says what a worker is, and the runtime what it does.
"""
