/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Writes: each filesystem's write_iter, which write(), its vectored kin, splice(), sendfile(), copies, io_uring, libaio,
 * loop devices, nfsd and an overlay's upper layer all come to, once for each write and on this filesystem only. They
 * return after data, size and the inode's lock.
 *
 * What is written in the background (-EIOCBQUEUED) is told when it completes: by iomap.c, or vfs_direct.c.
 */

#define VFS_EIOCBQUEUED (-529)
#define VFS_EAGAIN (-11)
#define VFS_IOCB_DSYNC (1 << 1) /* RWF_DSYNC */

static __always_inline int vfs_wrote(void *iocb, s64 written)
{
	struct rsyncfs_subject subject;
	u64 end;

#ifdef RSYNCFS_DIRECT_TOLD
	if (FIELD(kiocb, ki_complete, iocb) && RSYNCFS_DIRECT_TOLD((u64)iocb, written))
		return 0;
#endif
	if (!written || written == VFS_EIOCBQUEUED || written == VFS_EAGAIN)
		return 0;
	if (!rsyncfs_watched(FIELD(file, f_inode, FIELD(kiocb, ki_filp, iocb)), &subject))
		return 0;
	if (written > 0) {
		end = FIELD(kiocb, ki_pos, iocb);
		rsyncfs_emit(&subject, RSYNCFS_WRITE, 0, end - written, written);
	} else if (FIELD(kiocb, ki_flags, iocb) & VFS_IOCB_DSYNC) {
		/* the bytes are there, only their way to the disk failed */
		rsyncfs_emit(&subject, RSYNCFS_WHOLE, 0, 0, ~0ULL);
	} else {
		rsyncfs_emit(&subject, RSYNCFS_ATTR, 0, 0, 0);
	}
	return 0;
}

AFTER(vfs_write, ext4, ext4_file_write_iter, struct kiocb *)
{
	return vfs_wrote(GIVEN(void *, 0), call->result);
}

AFTER(vfs_write, xfs, xfs_file_write_iter, struct kiocb *)
{
	return vfs_wrote(GIVEN(void *, 0), call->result);
}

AFTER(vfs_write, btrfs, btrfs_file_write_iter, struct kiocb *)
{
	return vfs_wrote(GIVEN(void *, 0), call->result);
}

/* An ioctl writes what is compressed already. */
AFTER(vfs_write, btrfs, btrfs_do_encoded_write, struct kiocb *)
{
	return vfs_wrote(GIVEN(void *, 0), call->result);
}

OPTIONAL(shmem_file_write_iter)
AFTER(vfs_write, tmpfs, shmem_file_write_iter, struct kiocb *)
{
	return vfs_wrote(GIVEN(void *, 0), call->result);
}

/* tmpfs has a write_iter of its own since 6.6 */
INSTEAD(shmem_file_write_iter, generic_file_write_iter)
AFTER(vfs_write, tmpfs, generic_file_write_iter, struct kiocb *)
{
	return vfs_wrote(GIVEN(void *, 0), call->result);
}
