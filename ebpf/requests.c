/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Writes to tmpfs that are no system call's own. Those of io_uring are reported when a request announces that it is
 * done. A request that does not (IOSQE_CQE_SKIP_SUCCESS), and writers that no call or request on a tmpfs file explains
 * (loop devices, nfsd, an overlay's upper layer, core dumps), still update the ctime, under the inode's lock and before
 * their bytes. The kernel leaves that update out if the clock has not ticked since the last one and nobody has read the
 * ctime meanwhile: a reader that asks for it before it waits for the lock misses nothing.
 */

#ifdef __x86_64__

#define TMPFS_REQ_F_CQE_SKIP 64 /* IOSQE_CQE_SKIP_SUCCESS */
#define TMPFS_REQ_F_FIXED_FILE 1 /* IOSQE_FIXED_FILE */
#define TMPFS_OP_WRITEV 2
#define TMPFS_OP_WRITE_FIXED 5
#define TMPFS_OP_FALLOCATE 17
#define TMPFS_OP_WRITE 23
#define TMPFS_OP_SPLICE 30
#define TMPFS_OP_WRITEV_FIXED 61

/* Inodes written by io_uring requests that do not announce their completion, and where: all of an inode's together. */
struct tmpfs_silent {
	u64 start;
	u64 end;
	u32 busy;
	u32 unknown; /* not only there */
};
BPF_HASH(tmpfs_silent, u64, struct tmpfs_silent, 4096);

static __always_inline bool tmpfs_request_writes(u8 opcode)
{
	return opcode == TMPFS_OP_WRITE || opcode == TMPFS_OP_WRITE_FIXED || opcode == TMPFS_OP_WRITEV ||
	       opcode == TMPFS_OP_WRITEV_FIXED || opcode == TMPFS_OP_FALLOCATE || opcode == TMPFS_OP_SPLICE;
}

static __always_inline void tmpfs_widen(struct tmpfs_silent *silent, u64 start, u64 end)
{
	__sync_fetch_and_add(&silent->busy, 1);
	if (*(volatile u32 *)&silent->busy != 1) { /* another processor widens it right now */
		silent->unknown = 1;
	} else {
		if (start < silent->start)
			silent->start = start;
		if (end > silent->end)
			silent->end = end;
	}
	__sync_fetch_and_add(&silent->busy, -1);
}

/* A request that will not announce its completion: `file` is where it writes. */
static __always_inline int tmpfs_unannounced(void *request, u8 opcode, void *file)
{
	struct tmpfs_silent none = {.start = TMPFS_UNKNOWN};
	struct rsyncfs_subject subject = {};
	struct tmpfs_silent *silent;
	u64 inode, offset;

	if (!tmpfs_watched(file, &subject))
		return 0;
	inode = (u64)subject.inode;
	silent = tmpfs_silent.lookup_or_try_init(&inode, &none);
	if (!silent) {
		rsyncfs_count(RSYNCFS_LOST_MAP_FULL);
		return 0;
	}
	/* the command lies at the start of the request */
	offset = FIELD(kiocb, ki_pos, request);
	if ((opcode == TMPFS_OP_WRITE || opcode == TMPFS_OP_WRITE_FIXED) && (s64)offset >= 0 &&
	    !(FIELD(file, f_flags, file) & TMPFS_O_APPEND))
		tmpfs_widen(silent, offset, offset + FIELD(io_rw, len, request));
	else
		silent->unknown = 1;
	return 0;
}

/* It has no file yet, only a descriptor, or an index of the ring's own table, which is not looked up here. */
HOOK(requests, io_uring_submit_req, struct io_kiocb *)
{
	void *request = ARGUMENT(void *, 0);
	u64 flags = FIELD(io_kiocb, flags, request);
	u8 opcode = FIELD(io_kiocb, opcode, request);

	if (!(flags & TMPFS_REQ_F_CQE_SKIP) || flags & TMPFS_REQ_F_FIXED_FILE || !tmpfs_request_writes(opcode))
		return 0;
	return tmpfs_unannounced(request, opcode,
				 rsyncfs_file(FIELD(io_cqe, fd, ADDRESS(io_kiocb, cqe, request))));
}

HOOK(requests, io_uring_complete, struct io_ring_ctx *, void *, struct io_uring_cqe *)
{
	void *request = ARGUMENT(void *, 1);
	struct rsyncfs_subject subject = {};
	struct tmpfs_news news = {};
	s32 result;
	u8 opcode;
	u64 end;

	if (!request)
		return 0;
	opcode = FIELD(io_kiocb, opcode, request);
	if (!tmpfs_request_writes(opcode))
		return 0;
	if (!tmpfs_watched(FIELD(io_kiocb, file, request), &subject))
		return 0;
	result = FIELD(io_uring_cqe, res, ARGUMENT(void *, 2));
	if (opcode == TMPFS_OP_FALLOCATE && !result) {
		news = tmpfs_allocated(subject.inode, FIELD(io_sync, mode, request), FIELD(io_sync, off, request),
				       FIELD(io_sync, len, request));
	} else if (result > 0) {
		end = FIELD(kiocb, ki_pos, request);
		news = opcode == TMPFS_OP_SPLICE || end < (u32)result ? tmpfs_anywhere() :
									tmpfs_of(RSYNCFS_WRITE, end - result, result);
	}
	tmpfs_tell(&subject, &news);
	return 0;
}

/* An io_uring worker, where all writes to tmpfs go as long as it does not promise not to block. */
static __always_inline struct tmpfs_news tmpfs_touched_by_request(const struct rsyncfs_subject *subject, void *worker)
{
	void *request = CONTAINER(io_kiocb, work, FIELD(io_worker, cur_work, worker));
	u8 opcode = FIELD(io_kiocb, opcode, request);
	struct tmpfs_news nothing = {};
	u64 length = TMPFS_UNKNOWN;

	if (!tmpfs_request_writes(opcode))
		return nothing;
	/* an overlay's file, or one whose place is known at the end only */
	if (FIELD(file, f_inode, FIELD(io_kiocb, file, request)) != subject->inode || opcode == TMPFS_OP_SPLICE)
		return tmpfs_anywhere();
	if (!(FIELD(io_kiocb, flags, request) & TMPFS_REQ_F_CQE_SKIP))
		return nothing; /* it will announce its completion */
	if (opcode == TMPFS_OP_FALLOCATE)
		return tmpfs_allocated(subject->inode, FIELD(io_sync, mode, request), FIELD(io_sync, off, request),
				       FIELD(io_sync, len, request));
	if (opcode == TMPFS_OP_WRITE || opcode == TMPFS_OP_WRITE_FIXED)
		length = FIELD(io_rw, len, request);
	return tmpfs_of(RSYNCFS_WRITE, FIELD(kiocb, ki_pos, request), length);
}

/* A task that uses io_uring: it goes on with its requests at the end of any system call. */
static __always_inline struct tmpfs_news tmpfs_touched_inline(const struct rsyncfs_subject *subject)
{
	u64 inode = (u64)subject->inode;
	struct tmpfs_silent *silent = tmpfs_silent.lookup(&inode);
	struct tmpfs_news nothing = {};

	if (!silent)
		return nothing;
	if (!silent->unknown && silent->start < silent->end)
		return tmpfs_of(RSYNCFS_WRITE, silent->start, silent->end - silent->start);
	return tmpfs_anywhere();
}

/* A new ctime: does a call or request explain it that reports its range when it is done? */
static __always_inline int tmpfs_touched(void *inode)
{
	void *task = (void *)bpf_get_current_task();
	u32 flags = rsyncfs_task_flags();
	u64 thread = bpf_get_current_pid_tgid();
	struct rsyncfs_subject subject = {};
	struct tmpfs_news news;
	long call = rsyncfs_call();
	void *worker = flags & RSYNCFS_PF_IO_WORKER ? FIELD(task_struct, worker_private, task) : 0;
	bool requests = flags & (RSYNCFS_PF_IO_WORKER | RSYNCFS_PF_USER_WORKER);

#if HAS_FIELD(task_struct, io_uring)
	requests = requests || FIELD(task_struct, io_uring, task);
#endif
	if (!requests && call == RSYNCFS_CALL_UNKNOWN && tmpfs_compat() && tmpfs_calls.lookup(&thread))
		return 0;
	if (!requests && call != RSYNCFS_CALL_UNKNOWN &&
	    (!rsyncfs_call_writes(call) || tmpfs_calls.lookup(&thread)))
		return 0;
	if (!rsyncfs_watched_file(inode, RSYNCFS_TMPFS, &subject))
		return 0;
	if (worker)
		news = tmpfs_touched_by_request(&subject, worker);
	else if (requests)
		news = tmpfs_touched_inline(&subject);
	else
		news = tmpfs_anywhere();
	news.flags |= RSYNCFS_F_BEFORE;
	tmpfs_tell(&subject, &news);
	return 0;
}

HOOK(requests, ctime_ns_xchg, struct inode *, ...)
{
	return tmpfs_touched(ARGUMENT(void *, 0));
}

HOOK(requests, ctime_xchg_skip, struct inode *, ...)
{
	return tmpfs_touched(ARGUMENT(void *, 0));
}

#endif
