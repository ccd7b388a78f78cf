/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Direct writes that complete in the background, on kernels whose iomap has no tracepoints for it (before 6.5; others:
 * iomap.c). The end of a request is told after its pages have left the cache; the request is gone by then, so what it
 * was is remembered at the beginning of the end.
 */

#define VFS_DIO_WRITE (1U << 30)

struct vfs_beginner {
	u64 pid;
	u64 cgroup;
};
struct vfs_direct {
	u64 iocb;
	u64 inode;
	u64 bytes;
	struct vfs_beginner by;
};
/* By request. The first only says who began it: it may be forgotten, then whoever ends it is told instead. */
BPF_TABLE("lru_hash", u64, struct vfs_beginner, vfs_beginners, 4096);
BPF_HASH(vfs_directs, u64, struct vfs_direct, 4096);

/* Called for each extent, before it is on its way to the disk. A compiler may have left no such function: see above. */
OPTIONAL(iomap_dio_bio_iter)
ENTRY(vfs_direct, any, iomap_dio_bio_iter, struct iomap_dio *)
{
	u64 dio = GIVEN(u64, 0);
	void *iocb = FIELD(iomap_dio, iocb, dio);
	struct vfs_beginner by = {};
	struct rsyncfs_subject subject;

	if (!(FIELD(iomap_dio, flags, dio) & VFS_DIO_WRITE) || !FIELD(kiocb, ki_complete, iocb) ||
	    !rsyncfs_watched(FIELD(file, f_inode, FIELD(kiocb, ki_filp, iocb)), &subject))
		return 0;
	by.pid = bpf_get_current_pid_tgid() >> 32;
	by.cgroup = bpf_get_current_cgroup_id();
#ifdef RSYNCFS_TRACE
	rsyncfs_note_command();
#endif
	vfs_beginners.update(&dio, &by);
	return 0;
}

ENTRY(vfs_direct, any, iomap_dio_complete, struct iomap_dio *)
{
	u64 dio = GIVEN(u64, 0);
	struct vfs_direct direct = {};
	struct vfs_beginner *by;
	struct rsyncfs_subject subject;

	if (!(FIELD(iomap_dio, flags, dio) & VFS_DIO_WRITE))
		return 0;
	direct.iocb = (u64)FIELD(iomap_dio, iocb, dio);
	direct.inode = (u64)FIELD(file, f_inode, FIELD(kiocb, ki_filp, direct.iocb));
	direct.bytes = FIELD(iomap_dio, size, dio);
	if (!rsyncfs_watched((void *)direct.inode, &subject))
		return 0;
	by = vfs_beginners.lookup(&dio);
	if (by) {
		direct.by = *by;
		vfs_beginners.delete(&dio);
	}
	/* who began it is told at once, and tells (vfs_write.c), if it went well and did not end in a worker */
	if (!FIELD(iomap_dio, error, dio) && (FIELD(iomap_dio, wait_for_completion, dio) ||
					      !(rsyncfs_task_flags() & RSYNCFS_PF_WQ_WORKER)))
		return 0;
	if (vfs_directs.update(&dio, &direct))
		rsyncfs_count(RSYNCFS_RETURN_MISSED);
	return 0;
}

AFTER(vfs_direct, any, iomap_dio_complete, struct iomap_dio *)
{
	u64 dio = GIVEN(u64, 0);
	struct vfs_direct *direct = vfs_directs.lookup(&dio);
	struct rsyncfs_subject subject;
	u64 at;

	if (!direct)
		return 0;
	at = FIELD(kiocb, ki_pos, direct->iocb);
	if (rsyncfs_watched((void *)direct->inode, &subject)) {
		subject.pid = direct->by.pid;
		subject.cgroup = direct->by.cgroup;
		if (call->result > 0)
			rsyncfs_emit(&subject, RSYNCFS_WRITE, 0, at - call->result, call->result);
		else if (direct->bytes)
			rsyncfs_emit(&subject, RSYNCFS_WRITE, RSYNCFS_F_BEFORE, at, direct->bytes);
	}
	vfs_directs.delete(&dio);
	return 0;
}
