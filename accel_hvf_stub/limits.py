"""Numbers of Hypervisor.framework on Apple silicon that more than one module needs. Imports nothing of the plugin."""

from __future__ import annotations

#: Granule of hv_vm_map, hv_vm_unmap and hv_vm_protect. Source: the macOS kernel for Apple silicon has pages of 16 KiB,
#: and ``hv_vm_map`` in Apple's documentation wants addresses and sizes in pages.
PAGE_SIZE = 16 << 10

#: Bits of a guest-physical address ("IPA") in a VM of the default configuration, which ends at 64 GiB. Source: the
#: text of ``hv_vm_config_get_default_ipa_size`` (hv_vm_config.h).
IPA_BITS = 36
IPA_END = 1 << IPA_BITS
