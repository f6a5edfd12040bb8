"""Sweeps: many simulated runs from one YAML file, on all cores, in one table. A simulator is passed
in; nothing here knows one."""
