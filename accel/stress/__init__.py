"""Stress: guests touch memory in every way there is while their memory map changes, with figures of what came of it.

Layer: below the command line, above workloads. `runner.run_stress` is the entry; ``accelctl stress`` and tests call it.
`area` says what lies where, `changes` what changes, `image_guest` and `program_guest` who touches it, `judgement` what
they are judged by, `figures` what is counted.
"""
