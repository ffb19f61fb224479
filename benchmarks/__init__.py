"""Benchmarks: this library beside a C program or another peer that does the same, measured in the same run.

``python -m benchmarks`` runs them; ``docs/explanation/performance.md`` says what they measure and what to make of it.
Not part of the distribution. Each module of a benchmark has `measure(bench)`, which returns what it found.
"""
