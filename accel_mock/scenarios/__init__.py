"""Scenarios for the explorer over the mock's model of KVM: each mechanism as it is, and with a mistake in it."""
