"""accel_kvm: the KVM accelerator of `accel`, with real ioctls; found through its entry point `accel_kvm.plugin`."""
