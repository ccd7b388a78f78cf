/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * ext4, with or without journalled data, delayed allocation and inline data.
 */

static __always_inline bool watched_ext4(void *inode, struct rsyncfs_subject *subject)
{
	return rsyncfs_watched_file(inode, RSYNCFS_EXT4, subject);
}

static __always_inline u64 ext4_own_flags(void *inode)
{
	return FIELD(ext4_inode_info, i_flags, CONTAINER(ext4_inode_info, vfs_inode, inode));
}

/* The data is in the page, i_size and inline data are not set yet. */
static __always_inline int ext4_wrote(void *inode, u64 off, u64 copied)
{
	struct rsyncfs_subject subject;
	u16 flags = 0;

	if (!copied || !watched_ext4(inode, &subject))
		return 0;
	if (off + copied > FIELD(inode, i_size, inode) || ext4_own_flags(inode) & RSYNCFS_EXT4_INLINE_DATA_FL)
		flags = RSYNCFS_F_BEFORE;
	rsyncfs_emit(&subject, RSYNCFS_WRITE, flags, off, copied);
	return 0;
}

HOOK(ext4, ext4_da_write_end, struct inode *, loff_t, unsigned int, unsigned int)
{
	return ext4_wrote(ARGUMENT(void *, 0), ARGUMENT(u64, 1), ARGUMENT(u32, 3));
}

HOOK(ext4, ext4_write_end, struct inode *, loff_t, unsigned int, unsigned int)
{
	return ext4_wrote(ARGUMENT(void *, 0), ARGUMENT(u64, 1), ARGUMENT(u32, 3));
}

HOOK(ext4, ext4_journalled_write_end, struct inode *, loff_t, unsigned int, unsigned int)
{
	return ext4_wrote(ARGUMENT(void *, 0), ARGUMENT(u64, 1), ARGUMENT(u32, 3));
}

static __always_inline int ext4_reshaped(void *inode, u8 kind, u64 off, u64 len)
{
	struct rsyncfs_subject subject;

	if (watched_ext4(inode, &subject))
		rsyncfs_emit(&subject, kind, RSYNCFS_F_HOLES | RSYNCFS_F_BEFORE, off, len);
	return 0;
}

HOOK(ext4, ext4_fallocate_exit, struct inode *, loff_t, unsigned int, int)
{
	void *inode = ARGUMENT(void *, 0);
	u32 bits = FIELD(inode, i_blkbits, inode);
	u64 off = ARGUMENT(u64, 1);
	u64 end = ((off >> bits) + ARGUMENT(u32, 2)) << bits;

	return ext4_reshaped(inode, RSYNCFS_WRITE, off, end - off);
}

HOOK(ext4, ext4_punch_hole, struct inode *, loff_t, loff_t, int)
{
	return ext4_reshaped(ARGUMENT(void *, 0), RSYNCFS_WRITE, ARGUMENT(u64, 1), ARGUMENT(u64, 2));
}

HOOK(ext4, ext4_zero_range, struct inode *, loff_t, loff_t, int)
{
	return ext4_reshaped(ARGUMENT(void *, 0), RSYNCFS_WRITE, ARGUMENT(u64, 1), ARGUMENT(u64, 2));
}

HOOK(ext4, ext4_collapse_range, struct inode *, loff_t, loff_t)
{
	return ext4_reshaped(ARGUMENT(void *, 0), RSYNCFS_TAIL, ARGUMENT(u64, 1), ~0ULL);
}

HOOK(ext4, ext4_insert_range, struct inode *, loff_t, loff_t)
{
	return ext4_reshaped(ARGUMENT(void *, 0), RSYNCFS_TAIL, ARGUMENT(u64, 1), ~0ULL);
}

/* After i_size. Also runs when an inode is evicted, and then nobody truncated it. */
HOOK(ext4, ext4_truncate_exit, struct inode *)
{
	void *inode = ARGUMENT(void *, 0);
	struct rsyncfs_subject subject;

	if (!watched_ext4(inode, &subject) || FIELD(inode, i_state, inode) & RSYNCFS_I_FREEING)
		return 0;
	rsyncfs_emit(&subject, RSYNCFS_SIZE, RSYNCFS_F_BEFORE, FIELD(inode, i_size, inode), 0);
	return 0;
}

/*
 * A store through a mapping, also into a folio that is dirty already: page_mkwrite dirties all buffers of the folio,
 * the first of them first. The record covers the folio. (The journal's thread dirties buffers too, of what was written
 * long before.)
 */
HOOK(ext4, block_dirty_buffer, struct buffer_head *)
{
	void *buffer = ARGUMENT(void *, 0);
	struct rsyncfs_subject subject;
	void *folio, *mapping;

	folio = rsyncfs_buffer_folio(buffer);
	if (!folio || FIELD(folio, private, folio) != buffer)
		return 0;
	mapping = FIELD(folio, mapping, folio);
	/* low bits mark what is no file's */
	if (!mapping || (u64)mapping & 3 || !rsyncfs_mapped(mapping))
		return 0;
	if (rsyncfs_call_writes(rsyncfs_call()) || rsyncfs_memoryless())
		return 0;
	if (watched_ext4(FIELD(address_space, host, mapping), &subject))
		rsyncfs_emit(&subject, RSYNCFS_FOLIO, RSYNCFS_F_MAPPED, FIELD(folio, index, folio) * PAGE_SIZE,
			     rsyncfs_folio_bytes(folio));
	return 0;
}
