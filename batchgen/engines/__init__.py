"""Recorded runs of real engines, and how near a simulation of the same load comes."""
