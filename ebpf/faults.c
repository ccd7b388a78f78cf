/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Stores through mappings of tmpfs files are seen when they fault, so once for each page and mapping; later ones are
 * invisible.
 */

#ifdef __x86_64__

#if HAS_FIELD(maple_tree, ma_root) && HAS_FIELD(mm_struct, mm_mt) && HAS_FIELD(maple_range_64, pivot) && \
	HAS_FIELD(maple_arange_64, pivot) && HAS_FIELD(vm_area_struct, vm_flags)

/* Of a maple tree of a 64-bit kernel: levels that are followed, and the slots of its two kinds of nodes. */
#define TMPFS_LEVELS 6
#define TMPFS_RANGE_SLOTS 16
#define TMPFS_ARANGE_SLOTS 10
#define TMPFS_VM_SHARED 8

/* The slot of `entry` (a node with its type in the low bits) in which `address` lies. */
static __always_inline u64 tmpfs_step(u64 entry, u64 address, bool *leaf)
{
	u64 pivots[TMPFS_RANGE_SLOTS - 1] = {};
	void *node = (void *)(entry & ~0xffUL);
	u32 type = entry >> 3 & 15;
	u64 slots, index = 0;
	bool further = true;
	u32 i;

	*leaf = type == ENUMERATOR(maple_leaf_64, 1);
	if (type == ENUMERATOR(maple_arange_64, 3)) {
		bpf_probe_read_kernel(pivots, 8 * (TMPFS_ARANGE_SLOTS - 1), ADDRESS(maple_arange_64, pivot, node));
		slots = (u64)ADDRESS(maple_arange_64, slot, node);
	} else if (type == ENUMERATOR(maple_leaf_64, 1) || type == ENUMERATOR(maple_range_64, 2)) {
		bpf_probe_read_kernel(pivots, 8 * (TMPFS_RANGE_SLOTS - 1), ADDRESS(maple_range_64, pivot, node));
		slots = (u64)ADDRESS(maple_range_64, slot, node);
	} else {
		return 0;
	}
	/* a pivot is the last address of its slot; behind the last one in use is a zero */
#pragma unroll
	for (i = 0; i < TMPFS_RANGE_SLOTS - 1; i++) {
		further = further && pivots[i] < address && (!i || pivots[i]);
		index += further;
	}
	return READ(u64, slots + 8 * index);
}

/* The mapping at `address` of the current process, or 0. */
static __always_inline void *tmpfs_mapping_at(u64 address)
{
	void *mm = FIELD(task_struct, mm, (void *)bpf_get_current_task());
	u64 entry;
	bool leaf = false;

	if (!mm)
		return 0;
	entry = (u64)FIELD(maple_tree, ma_root, ADDRESS(mm_struct, mm_mt, mm));
	if ((entry & 3) != 2 || entry <= 4096) /* the root is no node */
		return 0;
	for (u32 level = 0; level < TMPFS_LEVELS && !leaf; level++)
		entry = tmpfs_step(entry, address, &leaf);
	return leaf ? (void *)entry : 0;
}

/* A store that faults. The store itself follows when the fault has been served. */
static __always_inline int tmpfs_fault(u64 address, u64 code)
{
	struct rsyncfs_subject subject = {};
	u64 offset;
	void *vma;

	if (!(code & 2)) /* a load */
		return 0;
	vma = tmpfs_mapping_at(address);
	if (!vma || !(FIELD(vm_area_struct, vm_flags, vma) & TMPFS_VM_SHARED))
		return 0;
	offset = address - FIELD(vm_area_struct, vm_start, vma);
	if (address < offset || address >= FIELD(vm_area_struct, vm_end, vma))
		return 0;
	if (!tmpfs_watched(FIELD(vm_area_struct, vm_file, vma), &subject))
		return 0;
	offset = (offset & ~(u64)(PAGE_SIZE - 1)) + FIELD(vm_area_struct, vm_pgoff, vma) * PAGE_SIZE;
	rsyncfs_emit(&subject, RSYNCFS_FOLIO, 0, offset, PAGE_SIZE);
	return 0;
}

HOOK(faults, page_fault_user, long unsigned int, struct pt_regs *, long unsigned int)
{
	return tmpfs_fault(ARGUMENT(u64, 0), ARGUMENT(u64, 2));
}

/* read(2) and its kin into a mapping */
HOOK(faults, page_fault_kernel, long unsigned int, struct pt_regs *, long unsigned int)
{
	return tmpfs_fault(ARGUMENT(u64, 0), ARGUMENT(u64, 2));
}

#endif
#endif
