"""Memory accounting of the core: pools, growth and the prefix index. Counts only."""
