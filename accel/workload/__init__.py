"""Workload files: what to run, on what, what changes meanwhile, and what is expected of it."""
