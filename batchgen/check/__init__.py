"""Checks of policy parts: random cases, a plain backend that runs them, and what must hold."""
