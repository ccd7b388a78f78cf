/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Direct writes, on every filesystem that uses iomap for them (ext4, XFS, btrfs): after the data and the size, in
 * whatever task completes them. Only the beginning tells writes from reads. A failed write may have written a part:
 * its range is the one it began with.
 */

struct direct_write {
	u64 off;
	u64 len;
	u64 pid; /* of who began it: it may end in a worker, or in anybody's interrupt */
	u64 cgroup;
	u64 task;   /* the same */
	u64 told;   /* bytes that were told while that task had not been told that it need not wait */
	u64 queued; /* it was */
};
/* Direct writes in flight, by kiocb. A read that begins with the same kiocb removes what a lost write left. */
BPF_HASH(direct_writes, u64, struct direct_write, 16384);
/* How many did not fit: from then on, what ends without having begun may be one of them. */
BPF_ARRAY(direct_writes_unknown, u64, 1);

HOOK(iomap, iomap_dio_rw_begin, struct kiocb *, struct iov_iter *, ...)
{
	u64 iocb = ARGUMENT(u64, 0);
	void *iter = ARGUMENT(void *, 1);
	struct rsyncfs_subject subject;
	struct direct_write range;
	u32 zero = 0;
	u64 *unknown;

	if (!rsyncfs_watched(FIELD(file, f_inode, FIELD(kiocb, ki_filp, iocb)), &subject))
		return 0;
	if (!FIELD(iov_iter, data_source, iter)) {
		direct_writes.delete(&iocb);
		return 0;
	}
	range.off = FIELD(kiocb, ki_pos, iocb);
	range.len = FIELD(iov_iter, count, iter);
	range.pid = bpf_get_current_pid_tgid() >> 32;
	range.cgroup = bpf_get_current_cgroup_id();
	range.task = bpf_get_current_task();
	range.told = 0;
	range.queued = 0;
#ifdef RSYNCFS_TRACE
	rsyncfs_note_command();
#endif
	if (direct_writes.update(&iocb, &range)) {
		unknown = direct_writes_unknown.lookup(&zero);
		if (unknown)
			__sync_fetch_and_add(unknown, 1);
	}
	return 0;
}

/* Whichever program comes first tells: the entry is gone then, or says so. */
INTERRUPTS(iomap_dio_complete)
HOOK(iomap, iomap_dio_complete, struct kiocb *, int, ssize_t)
{
	u64 iocb = ARGUMENT(u64, 0);
	s64 written = ARGUMENT(s64, 2);
	struct rsyncfs_subject subject;
	struct direct_write *begun;
	u32 zero = 0;
	u64 *unknown;
	u64 end;

	if (!rsyncfs_watched(FIELD(file, f_inode, FIELD(kiocb, ki_filp, iocb)), &subject) ||
	    !RSYNCFS_IS_FILE(subject.mode))
		return 0;
	begun = direct_writes.lookup(&iocb);
	if (!begun) {
		unknown = direct_writes_unknown.lookup(&zero);
		if (unknown && *unknown)
			rsyncfs_emit(&subject, RSYNCFS_WHOLE, RSYNCFS_F_BEFORE, 0, ~0ULL);
		return 0;
	}
	if (begun->told)
		return 0; /* by another of the programs */
	subject.pid = begun->pid;
	subject.cgroup = begun->cgroup;
#ifdef RSYNCFS_VFS_WRITE
	/* who waits for it tells of it (vfs_write.c) */
	if (!ARGUMENT(int, 1) && written > 0 && !FIELD(kiocb, ki_complete, iocb)) {
		direct_writes.delete(&iocb);
		return 0;
	}
#endif
	if (ARGUMENT(int, 1) || written < 0) {
		rsyncfs_emit(&subject, RSYNCFS_WRITE, RSYNCFS_F_BEFORE, begun->off, begun->len);
	} else if (written > 0) {
		end = FIELD(kiocb, ki_pos, iocb);
		rsyncfs_emit(&subject, RSYNCFS_WRITE, end > FIELD(inode, i_size, subject.inode) ? RSYNCFS_F_BEFORE : 0,
			     end - written, written);
#ifdef RSYNCFS_VFS_WRITE
		if (begun->task == bpf_get_current_task() && !begun->queued) {
			begun->told = written; /* it may end within the call that began it */
			return 0;
		}
#endif
	}
	direct_writes.delete(&iocb);
	return 0;
}

#ifdef RSYNCFS_VFS_WRITE
/*
 * At the end of the call that began a direct write: whether all of `written` has been told. Nobody else's entry is
 * touched: a kiocb that was used again has been begun by another task.
 */
#define RSYNCFS_DIRECT_TOLD(iocb, written) direct_write_told(iocb, written)
static __always_inline bool direct_write_told(u64 iocb, s64 written)
{
	struct direct_write *begun = direct_writes.lookup(&iocb);
	bool told;

	if (!begun || begun->task != bpf_get_current_task())
		return false;
	told = written > 0 && begun->told == written;
	if (begun->told)
		direct_writes.delete(&iocb);
	else
		begun->queued = 1;
	return told;
}
#endif
