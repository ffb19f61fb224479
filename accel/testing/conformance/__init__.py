"""The conformance suite: tests that hold an accelerator to what it claims; one module for each group of rules.

``accelctl conformance NAME`` runs it, or ``pytest --pyargs accel.testing.conformance --accel NAME``. The first line of
each test's text is the rule; a failure says what the accelerator did instead. What is not claimed is skipped, with that
reason.
"""
