/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * XFS: buffered writes and stores through mappings by way of iomap_iter; the rest by XFS's own tracepoints.
 */

static __always_inline bool watched_xfs(void *ip, struct rsyncfs_subject *subject)
{
	return rsyncfs_watched_file(ADDRESS(xfs_inode, i_vnode, ip), RSYNCFS_XFS, subject);
}

/*
 * Each call but the first of an operation tells what the turn before did: after the data and the size. A fault's turn
 * covers its folio up to the end of file, and comes before the store, which the folio's lock keeps from the reader's
 * flush.
 */
HOOK(xfs, iomap_iter, struct iomap_iter *, ...)
{
	void *iter = ARGUMENT(void *, 0);
	u32 flags = FIELD(iomap_iter, flags, iter);
	struct rsyncfs_subject subject;
	u64 begin, end;

	if (!(flags & RSYNCFS_IOMAP_WRITE) || flags & (RSYNCFS_IOMAP_DIRECT | RSYNCFS_IOMAP_UNSHARE))
		return 0;
	if (!FIELD(iomap, length, ADDRESS(iomap_iter, iomap, iter)))
		return 0;
#if HAS_FIELD(iomap_iter, iter_start_pos)
	begin = FIELD(iomap_iter, iter_start_pos, iter);
	end = FIELD(iomap_iter, pos, iter);
#else
	begin = FIELD(iomap_iter, pos, iter);
	end = begin + (s64)FIELD(iomap_iter, processed, iter);
#endif
	if ((s64)(end - begin) <= 0)
		return 0;
	if (!rsyncfs_watched_file(FIELD(iomap_iter, inode, iter), RSYNCFS_XFS, &subject))
		return 0;
	if (flags & RSYNCFS_IOMAP_FAULT)
		rsyncfs_emit(&subject, RSYNCFS_FOLIO, RSYNCFS_F_MAPPED, begin, end - begin);
	else
		rsyncfs_emit(&subject, RSYNCFS_WRITE, 0, begin, end - begin);
	return 0;
}

HOOK(xfs, xfs_reflink_remap_range, struct xfs_inode *, xfs_off_t, xfs_off_t, struct xfs_inode *, xfs_off_t)
{
	struct rsyncfs_subject subject;

	if (watched_xfs(ARGUMENT(void *, 3), &subject))
		rsyncfs_emit(&subject, RSYNCFS_WRITE, RSYNCFS_F_HOLES | RSYNCFS_F_BEFORE, ARGUMENT(u64, 4),
			     ARGUMENT(u64, 2));
	return 0;
}

/* These tell the inode only; the range is fallocate's, or unknown when another way (io_uring, ioctl) led here. */
static __always_inline int xfs_reshaped(void *ip, bool moves)
{
	struct rsyncfs_subject subject;
	u64 off = 0, len = 0;

	if (!watched_xfs(ip, &subject))
		return 0;
	if (!rsyncfs_fallocate(&off, &len))
		rsyncfs_emit(&subject, RSYNCFS_WHOLE, RSYNCFS_F_HOLES | RSYNCFS_F_BEFORE, 0, ~0ULL);
	else if (moves)
		rsyncfs_emit(&subject, RSYNCFS_TAIL, RSYNCFS_F_HOLES | RSYNCFS_F_BEFORE, off, ~0ULL);
	else
		rsyncfs_emit(&subject, RSYNCFS_WRITE, RSYNCFS_F_HOLES | RSYNCFS_F_BEFORE, off, len);
	return 0;
}

HOOK(xfs, xfs_alloc_file_space, struct xfs_inode *)
{
	return xfs_reshaped(ARGUMENT(void *, 0), false);
}

HOOK(xfs, xfs_free_file_space, struct xfs_inode *)
{
	return xfs_reshaped(ARGUMENT(void *, 0), false);
}

HOOK(xfs, xfs_collapse_file_space, struct xfs_inode *)
{
	return xfs_reshaped(ARGUMENT(void *, 0), true);
}

HOOK(xfs, xfs_insert_file_space, struct xfs_inode *)
{
	return xfs_reshaped(ARGUMENT(void *, 0), true);
}

/* Two files exchange contents (XFS_IOC_SWAPEXT; exchange.c has the newer way): each is told. */
static __always_inline int xfs_exchanged(void *ip)
{
	struct rsyncfs_subject subject;

	if (watched_xfs(ip, &subject))
		rsyncfs_emit(&subject, RSYNCFS_WHOLE, RSYNCFS_F_HOLES | RSYNCFS_F_BEFORE, 0, ~0ULL);
	return 0;
}

HOOK(xfs, xfs_swap_extent_after, struct xfs_inode *, int)
{
	return xfs_exchanged(ARGUMENT(void *, 0));
}

/*
 * After i_size when a file is truncated. Speculative blocks behind the end are freed by way of here too: then the size
 * is the one it had, which says nothing new. With no name left the inode is being given up.
 */
HOOK(xfs, xfs_itruncate_extents_end, struct xfs_inode *, xfs_fsize_t)
{
	struct rsyncfs_subject subject;
	u64 size = ARGUMENT(u64, 1);

	if (!watched_xfs(ARGUMENT(void *, 0), &subject))
		return 0;
	if (!FIELD(inode, i_nlink, subject.inode) && FIELD(inode, i_size, subject.inode) != size)
		return 0;
	rsyncfs_emit(&subject, RSYNCFS_SIZE, RSYNCFS_F_BEFORE, size, 0);
	return 0;
}
