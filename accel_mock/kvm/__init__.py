"""A model of KVM's memory side: small, and in the order in which KVM does things, so that each mechanism can be broken.

Layer: below the mock accelerator, which runs guests on it; above `accel`'s locks. From bottom to top: `atomic` and
`lock_classes`; `spte` and `page_log`; `slot_map`; `running`; `notifier`; `zap`; `mmu`; `memslots`, which holds all of
it. Sources: the kernel's pages on KVM's API and locks (virt/kvm/api, virt/kvm/locking), and the series that each
module names.
"""
