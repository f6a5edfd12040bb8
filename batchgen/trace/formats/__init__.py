"""Readers of public trace formats. Start at registry.import_trace; nothing here writes files."""
