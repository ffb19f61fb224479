"""Scenarios for the explorer over the KVM plugin, with the kernel replaced by a few lines of Python."""
