"""The accelerator ``mock``: memory slots, vCPUs and exits as KVM has them, in this process, without hardware."""
