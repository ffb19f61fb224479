"""The accelerator ``hvf`` as a stub: macOS's Hypervisor.framework, honest about not running."""
