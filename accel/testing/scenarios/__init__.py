"""Scenarios for the explorer, over this project's own code."""
