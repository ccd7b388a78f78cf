/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Stands in for inode.c where a new ctime passes no tracepoint (before 6.13): tells that something about an inode
 * changes, but not what. Fires for each write and allocation as well, before the change, inside the inode's lock.
 */

HOOK(ext4_inode, ext4_mark_inode_dirty, struct inode *, ...)
{
	void *inode = ARGUMENT(void *, 0);
	struct rsyncfs_subject subject;

	if (!rsyncfs_watched(inode, &subject))
		return 0;
	if (FIELD(inode, i_state, inode) & (RSYNCFS_I_NEW | RSYNCFS_I_FREEING))
		return 0;
	rsyncfs_emit(&subject, RSYNCFS_ATTR, RSYNCFS_F_BEFORE, 0, 0);
	return 0;
}
