/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Extents that change hands: clones, copies that the filesystem makes by sharing, and files that exchange contents.
 * (Copies that move bytes are writes.) Told after the locks.
 */

#define VFS_REMAP_DEDUP 1
#define VFS_EINVAL (-22)
#define VFS_EOPNOTSUPP (-95)
#define VFS_EXDEV (-18)

/* A failed one may have done a part. */
static __always_inline int vfs_remapped(void *target, u64 off, u64 len, u32 flags, s64 done)
{
	struct rsyncfs_subject subject;

	if (flags & VFS_REMAP_DEDUP || !done || done == VFS_EINVAL || done == VFS_EOPNOTSUPP || done == VFS_EXDEV)
		return 0;
	if (!rsyncfs_watched(FIELD(file, f_inode, target), &subject))
		return 0;
	rsyncfs_emit(&subject, RSYNCFS_WRITE, RSYNCFS_F_HOLES, off, done > 0 ? (u64)done : len ? len : ~0ULL);
	return 0;
}

AFTER(vfs_copy, xfs, xfs_file_remap_range, struct file *, loff_t, struct file *, loff_t, loff_t, unsigned int)
{
	return vfs_remapped(GIVEN(void *, 2), GIVEN(u64, 3), GIVEN(u64, 4), GIVEN(u32, 5), call->result);
}

AFTER(vfs_copy, btrfs, btrfs_remap_file_range, struct file *, loff_t, struct file *, loff_t, loff_t, unsigned int)
{
	return vfs_remapped(GIVEN(void *, 2), GIVEN(u64, 3), GIVEN(u64, 4), GIVEN(u32, 5), call->result);
}

static __always_inline void vfs_exchanged(void *inode)
{
	struct rsyncfs_subject subject;

	if (rsyncfs_watched(inode, &subject))
		rsyncfs_emit(&subject, RSYNCFS_WHOLE, RSYNCFS_F_HOLES, 0, ~0ULL);
}

#if HAS_FIELD(xfs_inode, i_vnode)
AFTER(vfs_copy, xfs, xfs_swap_extents, struct xfs_inode *, struct xfs_inode *)
{
	vfs_exchanged(ADDRESS(xfs_inode, i_vnode, GIVEN(void *, 0)));
	vfs_exchanged(ADDRESS(xfs_inode, i_vnode, GIVEN(void *, 1)));
	return 0;
}
#endif

#if HAS_FIELD(xfs_exchrange, file1)
/* XFS_IOC_EXCHANGE_RANGE, since 6.10 */
OPTIONAL(xfs_exchange_range)
AFTER(vfs_copy, xfs, xfs_exchange_range, struct xfs_exchrange *)
{
	vfs_exchanged(FIELD(file, f_inode, FIELD(xfs_exchrange, file1, GIVEN(void *, 0))));
	vfs_exchanged(FIELD(file, f_inode, FIELD(xfs_exchrange, file2, GIVEN(void *, 0))));
	return 0;
}
#endif
