"""A tracer: the memory events of every machine as JSON lines, in the file that ``ACCEL_TRACE`` names.

A plugin as anyone could write it, on public names of `accel` only. ``docs/how-to/trace-memory.md`` has the schema.
"""
