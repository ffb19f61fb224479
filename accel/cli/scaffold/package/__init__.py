"""The accelerator '$name' for accel."""
