/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Stands in for inode.c on kernels whose ctime passes no tracepoint (before 6.13): the hooks that tell at least that
 * something about a file's inode changes. They fire for each write as well, before the change, inside the inode's lock.
 */

HOOK(setattr, ext4_mark_inode_dirty, struct inode *, ...)
{
	void *inode = ARGUMENT(void *, 0);
	struct rsyncfs_subject subject;

	if (!rsyncfs_watched(inode, &subject) || subject.type != RSYNCFS_EXT4)
		return 0;
	if (FIELD(inode, i_state, inode) & (RSYNCFS_I_NEW | RSYNCFS_I_FREEING))
		return 0;
	rsyncfs_emit(&subject, RSYNCFS_ATTR, RSYNCFS_F_BEFORE, 0, 0);
	return 0;
}

#if HAS_FIELD(xfs_inode, i_vnode)
HOOK(setattr, xfs_setattr, struct xfs_inode *)
{
	struct rsyncfs_subject subject;

	if (rsyncfs_watched(ADDRESS(xfs_inode, i_vnode, ARGUMENT(void *, 0)), &subject))
		rsyncfs_emit(&subject, RSYNCFS_ATTR, RSYNCFS_F_BEFORE, 0, 0);
	return 0;
}
#endif
