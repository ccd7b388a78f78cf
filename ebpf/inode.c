/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Attributes and sizes, for every filesystem: each change of either sets the inode's ctime, and since 6.13 that passes
 * one of three tracepoints. They fire inside the inode's lock and around, not after, the change: RSYNCFS_F_BEFORE.
 *
 * What may have changed the size is SIZE with the present i_size. All filesystems set the ctime once more after they
 * have set a smaller size, so the lowest `off` of a file's SIZE records is the lowest size it had, or more than that
 * was reported by the filesystem's own hooks.
 */

static __always_inline int ctime_set(void *inode)
{
	struct rsyncfs_subject subject;
	u8 kind = RSYNCFS_ATTR;
	u64 size = 0;
	long call;

	if (!rsyncfs_watched(inode, &subject))
		return 0;
	/* being read from disk, being made (its directory tells), or on its way out: nobody changed it */
	if (FIELD(inode, i_state, inode) & (RSYNCFS_I_NEW | RSYNCFS_I_FREEING))
		return 0;
	if (!subject.ino) /* XFS sets the number last */
		return 0;
	if (subject.type == RSYNCFS_TMPFS) {
		if (!subject.gen) /* tmpfs hashes only what was asked a handle for, and draws the generation last */
			return 0;
	} else if (!FIELD(hlist_node, pprev, ADDRESS(inode, i_hash, inode))) {
		return 0;
	}
	if (RSYNCFS_IS_FILE(subject.mode)) {
		size = FIELD(inode, i_size, inode);
		call = rsyncfs_call();
		if (!rsyncfs_call_keeps_size(call))
			kind = RSYNCFS_SIZE;
		/* the one sign of a store into a page that was dirty already: who looked at the times sees the next */
		if (subject.blind && (kind == RSYNCFS_SIZE || call == RSYNCFS_CALL_FAULT) &&
		    rsyncfs_mapped(FIELD(inode, i_mapping, inode)))
			rsyncfs_emit(&subject, RSYNCFS_FOLIO, 0, 0, ~0ULL);
	}
	rsyncfs_emit(&subject, kind, RSYNCFS_F_BEFORE, size, 0);
	return 0;
}

HOOK(inode, inode_set_ctime_to_ts, struct inode *, ...)
{
	return ctime_set(ARGUMENT(void *, 0));
}

HOOK(inode, ctime_ns_xchg, struct inode *, ...)
{
	return ctime_set(ARGUMENT(void *, 0));
}

HOOK(inode, ctime_xchg_skip, struct inode *, ...)
{
	return ctime_set(ARGUMENT(void *, 0));
}
