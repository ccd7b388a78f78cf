/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Stores through shared mappings: each filesystem's page_mkwrite, which a store into a page that is clean, or was since
 * the last one, must pass. It returns with the folio locked, before the store; whoever writes the folio out waits for
 * that lock. The record covers the folio: since 6.18 one fault may map all of it.
 *
 * tmpfs has no page_mkwrite: only the fault itself is seen, once for each page and mapping.
 */

#define VFS_VM_SHARED 8
#define VFS_FAULT_WRITE 1
#define VFS_FAULT_FAILED 0x973 /* errors, fallback, and VM_FAULT_NOPAGE: the store comes again */

static __always_inline int vfs_stored(void *fault, u8 type, u64 result, bool whole)
{
	void *file = FIELD(vm_area_struct, vm_file, FIELD(vm_fault, vma, fault));
	u64 at = FIELD(vm_fault, pgoff, fault), bytes = 1;
	struct rsyncfs_subject subject;
	void *folio;

	if (result & VFS_FAULT_FAILED || !rsyncfs_watched_file(FIELD(file, f_inode, file), type, &subject))
		return 0;
	if (whole) {
		folio = rsyncfs_folio(FIELD(vm_fault, page, fault));
		at = FIELD(folio, index, folio);
		bytes = rsyncfs_folio_bytes(folio) / PAGE_SIZE;
	}
	rsyncfs_emit(&subject, RSYNCFS_FOLIO, RSYNCFS_F_MAPPED, at * PAGE_SIZE, bytes * PAGE_SIZE);
	return 0;
}

AFTER(vfs_mapping, ext4, ext4_page_mkwrite, struct vm_fault *)
{
	return vfs_stored(GIVEN(void *, 0), RSYNCFS_EXT4, call->result, true);
}

AFTER(vfs_mapping, xfs, xfs_filemap_page_mkwrite, struct vm_fault *)
{
	return vfs_stored(GIVEN(void *, 0), RSYNCFS_XFS, call->result, true);
}

AFTER(vfs_mapping, btrfs, btrfs_page_mkwrite, struct vm_fault *)
{
	return vfs_stored(GIVEN(void *, 0), RSYNCFS_BTRFS, call->result, true);
}

AFTER(vfs_mapping, tmpfs, shmem_fault, struct vm_fault *)
{
	void *fault = GIVEN(void *, 0);

	if (!(FIELD(vm_fault, flags, fault) & VFS_FAULT_WRITE) ||
	    !(FIELD(vm_area_struct, vm_flags, FIELD(vm_fault, vma, fault)) & VFS_VM_SHARED))
		return 0;
	return vfs_stored(fault, RSYNCFS_TMPFS, call->result, false);
}
