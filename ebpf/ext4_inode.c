/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Stands in for inode.c where a new ctime passes no tracepoint (before 6.13): tells that something about an inode
 * changes, but not what. Fires for each write and allocation as well, before the change, inside the inode's lock; and
 * for each new atime, which is nobody's business.
 */

/*
 * Whether the current task writes back what others dirtied, which changes no attribute. A loop device's worker is known
 * by its throttle flag.
 */
static __always_inline bool ext4_writes_back(long call)
{
	u32 worker = RSYNCFS_PF_KTHREAD | RSYNCFS_PF_WQ_WORKER;

	if (call == RSYNCFS_CALL_UNKNOWN)
		return (rsyncfs_task_flags() & (worker | RSYNCFS_PF_LOCAL_THROTTLE)) == worker;
	return call == 26 /* msync */ || call == 74 /* fsync */ || call == 75 /* fdatasync */ || call == 162 /* sync */ ||
	       call == 277 /* sync_file_range */ || call == 306 /* syncfs */;
}

/* These set the atime of what they read; they can store into another file, if that is mapped. */
static __always_inline bool ext4_reads(long call)
{
	return call == 0 /* read */ || call == 17 /* pread64 */ || call == 19 /* readv */ || call == 295 /* preadv */ ||
	       call == 327 /* preadv2 */ || call == 9 /* mmap */ || call == 59 /* execve */ || call == 322 /* execveat */ ||
	       call == 78 /* getdents */ || call == 217 /* getdents64 */ || call == 89 /* readlink */ ||
	       call == 267 /* readlinkat */;
}

HOOK(ext4_inode, ext4_mark_inode_dirty, struct inode *, ...)
{
	void *inode = ARGUMENT(void *, 0);
	struct rsyncfs_subject subject;
	long call;

	if (!rsyncfs_watched(inode, &subject))
		return 0;
	if (FIELD(inode, i_state, inode) & (RSYNCFS_I_NEW | RSYNCFS_I_FREEING))
		return 0;
	call = rsyncfs_call();
	if (ext4_writes_back(call) || (ext4_reads(call) && !rsyncfs_mapped(FIELD(inode, i_mapping, inode))))
		return 0;
	/* the new mtime is the one sign of a store into a page that was dirty already */
	if (subject.blind && (call == RSYNCFS_CALL_FAULT || !rsyncfs_call_keeps_size(call)) && !rsyncfs_memoryless() &&
	    rsyncfs_mapped(FIELD(inode, i_mapping, inode)))
		rsyncfs_emit(&subject, RSYNCFS_FOLIO, 0, 0, ~0ULL);
	rsyncfs_emit(&subject, RSYNCFS_ATTR, RSYNCFS_F_BEFORE, 0, 0);
	return 0;
}
