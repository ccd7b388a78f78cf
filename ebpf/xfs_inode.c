/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Stands in for inode.c where a new ctime passes no tracepoint (before 6.13): attributes and sizes that are set, before
 * they are, inside the inode's lock.
 */

HOOK(xfs_inode, xfs_setattr, struct xfs_inode *)
{
	struct rsyncfs_subject subject;

	if (rsyncfs_watched(ADDRESS(xfs_inode, i_vnode, ARGUMENT(void *, 0)), &subject))
		rsyncfs_emit(&subject, RSYNCFS_ATTR, RSYNCFS_F_BEFORE, 0, 0);
	return 0;
}
