"""The simulator backend: SimPy time, links and faults around the core. It takes no decision."""
