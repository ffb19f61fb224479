"""Explores the interleavings of real code: it decides who goes next at every shared access, and tries all ways.

Layer: `accel.testing`. `world` loads copies of modules with every access made visible (`instrument`) and cooperative
threads and clocks (`primitives`); `engine` runs one schedule; `search` tries schedules; `schedule` writes and reads
them; `scenario` is what people write; `report` shows what was found. Needs greenlet, from the extra ``testing``.
"""
