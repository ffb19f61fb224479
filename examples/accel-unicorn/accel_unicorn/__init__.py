"""accel_unicorn: the Unicorn engine as an accelerator of `accel`, for x86 guests where there is no /dev/kvm."""
