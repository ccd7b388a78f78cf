/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Sizes and allocation: whatever sets a size or attributes passes notify_change(), and each filesystem's fallocate is
 * called by the system call, io_uring, loop devices and nfsd alike. Told after the effect.
 */

#define VFS_ATTR_SIZE (1 << 3)
#define VFS_FALLOC_KEEP_SIZE 0x01
#define VFS_FALLOC_MOVES 0x28	 /* collapse, insert */
#define VFS_FALLOC_SAME_BYTES 0x41 /* keep the size, unshare */
#define VFS_FAILS_EARLY(result) ((result) == -22 || (result) == -95 || (result) == -1 || (result) == -27)

AFTER(vfs_size, any, notify_change, struct dentry *, struct iattr *)
{
	struct rsyncfs_subject subject;
	void *inode = FIELD(dentry, d_inode, GIVEN(void *, 0));
	u32 what = FIELD(iattr, ia_valid, GIVEN(void *, 1));
	bool failed = (s32)call->result;

	if (!rsyncfs_watched(inode, &subject))
		return 0;
	if (what & VFS_ATTR_SIZE && RSYNCFS_IS_FILE(subject.mode)) {
		/* a failed one may have cut a part off */
		rsyncfs_emit(&subject, RSYNCFS_SIZE, 0,
			     failed ? (u64)FIELD(inode, i_size, inode) : (u64)FIELD(iattr, ia_size, GIVEN(void *, 1)), 0);
	} else if (!failed) {
		rsyncfs_emit(&subject, RSYNCFS_ATTR, 0, 0, 0);
	}
	return 0;
}

static __always_inline int vfs_allocated(void *file, u32 mode, u64 off, u64 len, s64 result)
{
	struct rsyncfs_subject subject;

	if (VFS_FAILS_EARLY(result) || !rsyncfs_watched(FIELD(file, f_inode, file), &subject))
		return 0;
	if (mode & VFS_FALLOC_MOVES)
		rsyncfs_emit(&subject, RSYNCFS_TAIL, RSYNCFS_F_HOLES, off, ~0ULL);
	else if (mode & ~VFS_FALLOC_SAME_BYTES)
		rsyncfs_emit(&subject, RSYNCFS_WRITE, RSYNCFS_F_HOLES, off, len);
	else if (mode & VFS_FALLOC_KEEP_SIZE)
		rsyncfs_emit(&subject, RSYNCFS_ATTR, 0, 0, 0);
	else /* may have grown */
		rsyncfs_emit(&subject, RSYNCFS_SIZE, 0, FIELD(inode, i_size, subject.inode), 0);
	return 0;
}

AFTER(vfs_size, ext4, ext4_fallocate, struct file *, int, loff_t, loff_t)
{
	return vfs_allocated(GIVEN(void *, 0), GIVEN(u32, 1), GIVEN(u64, 2), GIVEN(u64, 3), call->result);
}

AFTER(vfs_size, xfs, xfs_file_fallocate, struct file *, int, loff_t, loff_t)
{
	return vfs_allocated(GIVEN(void *, 0), GIVEN(u32, 1), GIVEN(u64, 2), GIVEN(u64, 3), call->result);
}

AFTER(vfs_size, btrfs, btrfs_fallocate, struct file *, int, loff_t, loff_t)
{
	return vfs_allocated(GIVEN(void *, 0), GIVEN(u32, 1), GIVEN(u64, 2), GIVEN(u64, 3), call->result);
}

AFTER(vfs_size, tmpfs, shmem_fallocate, struct file *, int, loff_t, loff_t)
{
	return vfs_allocated(GIVEN(void *, 0), GIVEN(u32, 1), GIVEN(u64, 2), GIVEN(u64, 3), call->result);
}
