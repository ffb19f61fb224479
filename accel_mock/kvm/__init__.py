"""A model of KVM's memory side: small, and in the order in which KVM does things, so that each mechanism can be broken.

Layer: below the mock accelerator, which runs guests on it; above `accel`'s locks. From bottom to top: `atomic` and
`lock_classes`; `spte`, `page_log`, `dirty_ring` and `host_pages`; `slot_map` and `slot_rules`; `rmap` and `fast_fault`;
`running`; `notifier`; `zap`; `mmu`; `memslots`, which holds all of it. Beside them, for exploring and for reading:
`indirect`, `zap_costs`, `lock_table`. Sources: the kernel's pages on KVM's API and locks (virt/kvm/api,
virt/kvm/locking), and the series that each module names.
"""
