/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * tmpfs has no tracepoints of its own. Its writes are seen where they leave the kernel: at the exit of the system calls
 * that write, and at the completion of io_uring requests; both are after the bytes. Sizes are the inode family's:
 * shmem_setattr() sets the size first and the ctime next.
 *
 * A call at the file's own position tells only how much it wrote. Where is taken from the positions at its entry and
 * exit, which other users of the same open file move too: forwards (then the range is too wide, no harm) or, by
 * lseek(), anywhere. A call that overlapped a jump is reported as a write of unknown place, as is whatever else does
 * not add up.
 *
 * Writers that no system call or request on a tmpfs file explains (loop devices, nfsd, an overlay's upper layer, core
 * dumps) still update the ctime, under the inode's lock and before their bytes. The kernel leaves that update out if
 * the clock has not ticked since the last one and nobody has read the ctime meanwhile: a reader that asks for it
 * before it waits for the lock misses nothing.
 *
 * Stores through a mapping are seen when they fault, so once for each page and mapping; later ones are invisible.
 */

#ifdef __x86_64__

#define TMPFS_O_APPEND 02000
#define TMPFS_RWF_APPEND 0x10
#define TMPFS_RWF_NOAPPEND 0x20
#define TMPFS_FALLOC_KEEP_SIZE 1
#define TMPFS_IO_SUBMIT 209
#define TMPFS_IO_SUBMIT_COMPAT 248
#define TMPFS_IOCB_PWRITE 1
#define TMPFS_IOCB_PWRITEV 8
#define TMPFS_IOCBS 256	     /* of one io_submit() that are looked at */
#define TMPFS_SEGMENTS 8     /* of one IOCB_CMD_PWRITEV that are added up */
#define TMPFS_JUMPS 65536    /* a power of two */
#define TMPFS_UNKNOWN (~0UL) /* a place, or a length to the end */

#define TMPFS_REQ_F_CQE_SKIP 64 /* IOSQE_CQE_SKIP_SUCCESS */
#define TMPFS_REQ_F_FIXED_FILE 1 /* IOSQE_FIXED_FILE */
#define TMPFS_OP_WRITEV 2
#define TMPFS_OP_WRITE_FIXED 5
#define TMPFS_OP_FALLOCATE 17
#define TMPFS_OP_WRITE 23
#define TMPFS_OP_SPLICE 30
#define TMPFS_OP_WRITEV_FIXED 61

enum tmpfs_way {
	TMPFS_NONE = 0,
	TMPFS_OWN,	/* writes at the open file's position and moves it */
	TMPFS_COPY,	/* the same, but reads it without the lock, and sets it at the end */
	TMPFS_AT,	/* writes at a given offset */
	TMPFS_POINTER,	/* writes at an offset in the caller's memory, and moves that */
	TMPFS_ALLOCATE, /* fallocate */
	TMPFS_SEEK,	/* moves the position */
	TMPFS_ODD,	/* writes; arguments not understood */
};

/* What a system call's arguments say. */
struct tmpfs_plan {
	s32 fd;
	u8 way;
	u8 append; /* RWF_APPEND */
	u8 keep;   /* RWF_NOAPPEND */
	u64 offset; /* or a pointer to it */
};

/* What is remembered of a call from its entry to its exit. */
struct tmpfs_call {
	struct rsyncfs_subject subject;
	void *file;
	u64 offset; /* where it will write, or TMPFS_UNKNOWN */
	u64 size;
	u32 jumps; /* begun so far */
	u8 append;
};
BPF_HASH(tmpfs_calls, u64, struct tmpfs_call, 32768);

/* Jumps of positions, by a hash of the open file: two that share an entry cost precision, nothing else. */
struct tmpfs_jumps {
	u32 begun;
	u32 ended;
};
BPF_ARRAY(tmpfs_jumps, struct tmpfs_jumps, TMPFS_JUMPS);

/* struct iocb of little-endian machines: a control block of libaio, part of the system call interface. */
struct tmpfs_aio {
	u64 data;
	u32 key;
	u32 rw_flags;
	u16 opcode;
	s16 priority;
	u32 fd;
	u64 buffer;
	u64 bytes;
	s64 offset;
	u64 reserved;
	u32 flags;
	u32 eventfd;
};

/* One write of an io_submit() under way. */
struct tmpfs_iocb_key {
	u64 thread;
	u64 index;
};
struct tmpfs_iocb {
	struct rsyncfs_subject subject;
	u64 kind; /* of the record */
	u64 offset;
	u64 length;
	u64 size;
	u64 append;
};
BPF_HASH(tmpfs_iocbs, struct tmpfs_iocb_key, struct tmpfs_iocb, 16384);

/* Inodes written by io_uring requests that do not announce their completion, and where: all of an inode's together. */
struct tmpfs_silent {
	u64 start;
	u64 end;
	u32 busy;
	u32 unknown; /* not only there */
};
BPF_HASH(tmpfs_silent, u64, struct tmpfs_silent, 4096);

static __always_inline void *tmpfs_file(s32 fd)
{
	void *files = FIELD(task_struct, files, (void *)bpf_get_current_task());
	void *table = FIELD(files_struct, fdt, files);
	void *file = 0;

	if (fd < 0 || (u32)fd >= FIELD(fdtable, max_fds, table))
		return 0;
	bpf_probe_read_kernel(&file, sizeof(file), (void *)((u64)FIELD(fdtable, fd, table) + 8 * (u64)(u32)fd));
	return file;
}

static __always_inline bool tmpfs_watched(void *file, struct rsyncfs_subject *subject)
{
	return file && rsyncfs_watched_file(FIELD(file, f_inode, file), RSYNCFS_TMPFS, subject);
}

static __always_inline bool tmpfs_compat(void)
{
	return FIELD(thread_info, status, (void *)bpf_get_current_task()) & RSYNCFS_TS_COMPAT;
}

static __always_inline void tmpfs_whole(const struct rsyncfs_subject *subject, u16 flags)
{
	rsyncfs_emit(subject, RSYNCFS_WHOLE, flags, 0, TMPFS_UNKNOWN);
}

/*
 * What was appended lies between the sizes before and after, other writers' bytes with it. `position` is where the
 * open file's position is now, or TMPFS_UNKNOWN.
 */
static __always_inline void tmpfs_appended(const struct rsyncfs_subject *subject, u64 size, u64 position, u64 done)
{
	u64 now = FIELD(inode, i_size, subject->inode);

	if (position != TMPFS_UNKNOWN && position - done < size)
		size = position - done; /* truncated in between */
	if (now < size || now - size < done)
		tmpfs_whole(subject, 0);
	else
		rsyncfs_emit(subject, RSYNCFS_WRITE, 0, size, now - size);
}

static __always_inline void tmpfs_allocated(const struct rsyncfs_subject *subject, u32 mode, u64 offset, u64 length)
{
	if (mode & ~TMPFS_FALLOC_KEEP_SIZE)
		rsyncfs_emit(subject, RSYNCFS_WRITE, RSYNCFS_F_HOLES, offset, length);
	else if (!mode) /* may have grown, without a new ctime */
		rsyncfs_emit(subject, RSYNCFS_SIZE, 0, FIELD(inode, i_size, subject->inode), 0);
}

/* System calls of the 64-bit ABI. */
static __always_inline bool tmpfs_plan_native(u64 number, void *regs, struct tmpfs_plan *plan)
{
	u32 flags = 0;

	switch (number) {
	case 1:	 /* write */
	case 20: /* writev */
		plan->way = TMPFS_OWN;
		plan->fd = FIELD(pt_regs, di, regs);
		return true;
	case 40: /* sendfile */
		plan->way = TMPFS_COPY;
		plan->fd = FIELD(pt_regs, di, regs);
		return true;
	case 328: /* pwritev2 */
		flags = FIELD(pt_regs, r9, regs);
		/* fall through */
	case 18:  /* pwrite64 */
	case 296: /* pwritev */
		plan->fd = FIELD(pt_regs, di, regs);
		plan->offset = FIELD(pt_regs, r10, regs);
		plan->way = number == 328 && plan->offset == TMPFS_UNKNOWN ? TMPFS_OWN : TMPFS_AT;
		plan->append = !!(flags & TMPFS_RWF_APPEND);
		plan->keep = !!(flags & TMPFS_RWF_NOAPPEND);
		return true;
	case 275: /* splice */
	case 326: /* copy_file_range */
		plan->fd = FIELD(pt_regs, dx, regs);
		plan->offset = FIELD(pt_regs, r10, regs);
		plan->way = plan->offset ? TMPFS_POINTER : TMPFS_COPY;
		return true;
	case 285: /* fallocate */
		plan->way = TMPFS_ALLOCATE;
		plan->fd = FIELD(pt_regs, di, regs);
		return true;
	case 8: /* lseek */
		plan->way = TMPFS_SEEK;
		plan->fd = FIELD(pt_regs, di, regs);
		return true;
	}
	return false;
}

/* Those of the 32-bit one, whose ranges are not worked out. */
static __always_inline bool tmpfs_plan_compat(u64 number, void *regs, struct tmpfs_plan *plan)
{
	plan->way = TMPFS_ODD;
	switch (number) {
	case 19:  /* lseek */
	case 140: /* _llseek */
		plan->way = TMPFS_SEEK;
		/* fall through */
	case 4:	  /* write */
	case 146: /* writev */
	case 181: /* pwrite64 */
	case 187: /* sendfile */
	case 239: /* sendfile64 */
	case 324: /* fallocate */
	case 334: /* pwritev */
	case 379: /* pwritev2 */
		plan->fd = FIELD(pt_regs, bx, regs);
		return true;
	case 313: /* splice */
	case 377: /* copy_file_range */
		plan->fd = FIELD(pt_regs, dx, regs);
		return true;
	}
	return false;
}

/* Cheap and first: all numbers of either ABI that are looked at, for every other call of the host passes here too. */
static __always_inline bool tmpfs_number(u64 number)
{
	switch (number) {
	case 1:
	case 4:
	case 8:
	case 18 ... 20:
	case 40:
	case 140:
	case 146:
	case 181:
	case 187:
	case TMPFS_IO_SUBMIT:
	case 239:
	case TMPFS_IO_SUBMIT_COMPAT:
	case 275:
	case 285:
	case 296:
	case 313:
	case 324:
	case 326:
	case 328:
	case 334:
	case 377:
	case 379:
		return true;
	}
	return false;
}

static __always_inline bool tmpfs_plan_of(u64 number, void *regs, struct tmpfs_plan *plan)
{
	return tmpfs_compat() ? tmpfs_plan_compat(number, regs, plan) : tmpfs_plan_native(number, regs, plan);
}

static __always_inline struct tmpfs_jumps *tmpfs_jumps_of(void *file)
{
	u32 index = ((u64)file >> 6) * 2654435761UL >> 16 & (TMPFS_JUMPS - 1);

	return tmpfs_jumps.lookup(&index);
}

static __always_inline bool tmpfs_jumping(u8 way)
{
	return way == TMPFS_SEEK || way == TMPFS_COPY;
}

/* libaio: control blocks are read before the call, because they may be used again as soon as their writes are done. */
static __always_inline bool tmpfs_iocb_read(void *regs, u32 index, struct tmpfs_aio *iocb)
{
	u64 list = FIELD(pt_regs, dx, regs);
	u64 bytes = tmpfs_compat() ? 4 : 8;
	u64 pointer = 0;

	if (bpf_probe_read_user(&pointer, bytes, (void *)(list + bytes * index)))
		return false;
	return !bpf_probe_read_user(iocb, sizeof(*iocb), (void *)pointer);
}

static __always_inline bool tmpfs_iocb_writes(const struct tmpfs_aio *iocb)
{
	return iocb->opcode == TMPFS_IOCB_PWRITE || iocb->opcode == TMPFS_IOCB_PWRITEV;
}

/* The bytes of an array of struct iovec; TMPFS_UNKNOWN if it is long or cannot be read. */
static __always_inline u64 tmpfs_segments(u64 segments, u64 count)
{
	u64 length = 0, total = 0;

	if (count > TMPFS_SEGMENTS || tmpfs_compat())
		return TMPFS_UNKNOWN;
	for (u32 i = 0; i < TMPFS_SEGMENTS; i++) {
		if (i >= count)
			break;
		if (bpf_probe_read_user(&length, sizeof(length), (void *)(segments + 16 * i + 8)))
			return TMPFS_UNKNOWN;
		total += length;
	}
	return total;
}

static __always_inline void tmpfs_submit(void *regs)
{
	s64 count = tmpfs_compat() ? FIELD(pt_regs, cx, regs) : FIELD(pt_regs, si, regs);
	struct tmpfs_iocb_key key = {.thread = bpf_get_current_pid_tgid()};

	for (u32 i = 0; i < TMPFS_IOCBS; i++) {
		struct tmpfs_iocb write = {};
		struct tmpfs_aio iocb = {};
		void *file;

		if (i >= count)
			break;
		if (!tmpfs_iocb_read(regs, i, &iocb)) { /* swapped out: the kernel will read it */
			rsyncfs_count_loss(RSYNCFS_LOST_MAP_FULL);
			continue;
		}
		if (!tmpfs_iocb_writes(&iocb))
			continue;
		file = tmpfs_file(iocb.fd);
		if (!tmpfs_watched(file, &write.subject))
			continue;
		write.kind = RSYNCFS_WRITE;
		write.offset = iocb.offset;
		write.length = iocb.bytes;
		if (iocb.opcode == TMPFS_IOCB_PWRITEV)
			write.length = tmpfs_segments(iocb.buffer, iocb.bytes);
		write.append = FIELD(file, f_flags, file) & TMPFS_O_APPEND || iocb.rw_flags & TMPFS_RWF_APPEND;
		write.size = FIELD(inode, i_size, write.subject.inode);
		key.index = i;
		if (tmpfs_iocbs.update(&key, &write))
			rsyncfs_count_loss(RSYNCFS_LOST_MAP_FULL);
	}
}

/* Works out what an append wrote. */
static __always_inline void tmpfs_iocb_settle(struct tmpfs_iocb *write)
{
	u64 now;

	if (!write->append)
		return;
	now = FIELD(inode, i_size, write->subject.inode);
	if (write->length == TMPFS_UNKNOWN || now < write->size + write->length)
		write->kind = RSYNCFS_WHOLE;
	write->offset = write->size;
	write->length = now - write->size;
}

static __always_inline void tmpfs_submitted(void *regs, s64 result)
{
	s64 count = tmpfs_compat() ? FIELD(pt_regs, cx, regs) : FIELD(pt_regs, si, regs);
	struct tmpfs_iocb_key key = {.thread = bpf_get_current_pid_tgid()};
	struct tmpfs_iocb *write;

	/* two loops without a test of `result`: the verifier would follow each outcome of each turn */
	for (u32 i = 0; i < TMPFS_IOCBS; i++) {
		if (i >= result)
			break;
		key.index = i;
		write = tmpfs_iocbs.lookup(&key);
		if (!write)
			continue;
		tmpfs_iocb_settle(write);
		rsyncfs_emit(&write->subject, write->kind, 0, write->offset, write->length);
	}
	for (u32 i = 0; i < TMPFS_IOCBS; i++) {
		if (i >= count)
			break;
		key.index = i;
		tmpfs_iocbs.delete(&key);
	}
	/* never looked at: whoever submits so many at once is not known to write here, but may */
	if (result > TMPFS_IOCBS)
		rsyncfs_count_loss(RSYNCFS_LOST_MAP_FULL);
}

HOOK(tmpfs, sys_enter, struct pt_regs *, long int)
{
	void *regs = ARGUMENT(void *, 0);
	u64 number = ARGUMENT(u64, 1);
	u64 thread = bpf_get_current_pid_tgid();
	struct tmpfs_plan plan = {};
	struct tmpfs_call call = {};
	struct tmpfs_jumps *jumps;

	if (!tmpfs_number(number))
		return 0;
	if (number == TMPFS_IO_SUBMIT || (number == TMPFS_IO_SUBMIT_COMPAT && tmpfs_compat())) {
		tmpfs_submit(regs);
		return 0;
	}
	if (!tmpfs_plan_of(number, regs, &plan))
		return 0;
	call.file = tmpfs_file(plan.fd);
	if (!tmpfs_watched(call.file, &call.subject))
		return 0;
	call.size = FIELD(inode, i_size, call.subject.inode);
	call.append = FIELD(file, f_flags, call.file) & TMPFS_O_APPEND ? 1 : 0;
	call.offset = plan.offset;
	if (plan.way == TMPFS_POINTER &&
	    bpf_probe_read_user(&call.offset, sizeof(call.offset), (void *)plan.offset))
		call.offset = TMPFS_UNKNOWN;
	if (plan.way == TMPFS_OWN || tmpfs_jumping(plan.way)) {
		jumps = tmpfs_jumps_of(call.file);
		if (!jumps)
			return 0;
		if (tmpfs_jumping(plan.way))
			__sync_fetch_and_add(&jumps->begun, 1);
		/* the count before the position: a jump between the two is seen at the exit */
		call.jumps = *(volatile u32 *)&jumps->begun;
		if (call.jumps - *(volatile u32 *)&jumps->ended == (tmpfs_jumping(plan.way) ? 1 : 0))
			call.offset = FIELD(file, f_pos, call.file);
		else
			call.offset = TMPFS_UNKNOWN; /* a jump is under way */
	}
	tmpfs_calls.update(&thread, &call);
	return 0;
}

/* `done` bytes, more than 0, were written. */
static __always_inline void tmpfs_written(struct tmpfs_plan *plan, struct tmpfs_call *call, u64 done)
{
	bool append = (call->append && !plan->keep) || plan->append;
	u64 position = TMPFS_UNKNOWN;
	struct tmpfs_jumps *jumps;

	if (plan->way == TMPFS_OWN || plan->way == TMPFS_COPY) {
		jumps = tmpfs_jumps_of(call->file);
		position = FIELD(file, f_pos, call->file);
		if (!jumps || *(volatile u32 *)&jumps->begun != call->jumps)
			call->offset = TMPFS_UNKNOWN;
	} else if (plan->way == TMPFS_POINTER) {
		if (bpf_probe_read_user(&position, sizeof(position), (void *)plan->offset) ||
		    position - done != call->offset)
			call->offset = TMPFS_UNKNOWN;
	} else {
		position = call->offset + done;
	}
	if (!!(FIELD(file, f_flags, call->file) & TMPFS_O_APPEND) != call->append || plan->way == TMPFS_ODD)
		tmpfs_whole(&call->subject, 0);
	else if (append)
		tmpfs_appended(&call->subject, call->size,
			       plan->way == TMPFS_OWN && call->offset != TMPFS_UNKNOWN ? position : TMPFS_UNKNOWN,
			       done);
	else if (call->offset == TMPFS_UNKNOWN || position < call->offset + done)
		tmpfs_whole(&call->subject, 0);
	else
		rsyncfs_emit(&call->subject, RSYNCFS_WRITE, 0, call->offset, position - call->offset);
}

HOOK(tmpfs, sys_exit, struct pt_regs *, long int)
{
	void *regs = ARGUMENT(void *, 0);
	s64 result = ARGUMENT(s64, 1);
	u64 number = FIELD(pt_regs, orig_ax, regs);
	u64 thread = bpf_get_current_pid_tgid();
	struct rsyncfs_subject subject = {};
	struct tmpfs_plan plan = {};
	struct tmpfs_call call = {};
	struct tmpfs_call *entry;
	struct tmpfs_jumps *jumps;
	void *file;

	if (!tmpfs_number(number))
		return 0;
	if (number == TMPFS_IO_SUBMIT || (number == TMPFS_IO_SUBMIT_COMPAT && tmpfs_compat())) {
		tmpfs_submitted(regs, result);
		return 0;
	}
	if (!tmpfs_plan_of(number, regs, &plan))
		return 0;
	entry = tmpfs_calls.lookup(&thread);
	/* what can have waited since before these hooks were there; all else that began unseen shows by its ctime */
	if (!entry && plan.way != TMPFS_COPY && plan.way != TMPFS_POINTER)
		return 0;
	file = tmpfs_file(plan.fd);
	if (entry) {
		call = *entry;
		tmpfs_calls.delete(&thread);
		if (tmpfs_jumping(plan.way)) {
			jumps = tmpfs_jumps_of(call.file);
			if (jumps)
				__sync_fetch_and_add(&jumps->ended, 1);
		}
	}
	if (plan.way == TMPFS_SEEK || (result <= 0 && plan.way != TMPFS_ALLOCATE))
		return 0;
	if (entry && file == call.file) {
		call.subject.flags = rsyncfs_mapped(FIELD(inode, i_mapping, call.subject.inode));
		if (plan.way == TMPFS_ALLOCATE)
			tmpfs_allocated(&call.subject, FIELD(pt_regs, si, regs), FIELD(pt_regs, dx, regs),
					FIELD(pt_regs, r10, regs));
		else
			tmpfs_written(&plan, &call, result);
		return 0;
	}
	/* begun unseen, or the descriptor changed hands during the call */
	if (entry)
		tmpfs_whole(&call.subject, 0);
	if (tmpfs_watched(file, &subject))
		tmpfs_whole(&subject, 0);
	return 0;
}

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
		rsyncfs_count_loss(RSYNCFS_LOST_MAP_FULL);
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
HOOK(tmpfs, io_uring_submit_req, struct io_kiocb *)
{
	void *request = ARGUMENT(void *, 0);
	u64 flags = FIELD(io_kiocb, flags, request);
	u8 opcode = FIELD(io_kiocb, opcode, request);

	if (!(flags & TMPFS_REQ_F_CQE_SKIP) || flags & TMPFS_REQ_F_FIXED_FILE || !tmpfs_request_writes(opcode))
		return 0;
	return tmpfs_unannounced(request, opcode,
				 tmpfs_file(FIELD(io_cqe, fd, ADDRESS(io_kiocb, cqe, request))));
}

HOOK(tmpfs, io_uring_complete, struct io_ring_ctx *, void *, struct io_uring_cqe *)
{
	void *request = ARGUMENT(void *, 1);
	struct rsyncfs_subject subject = {};
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
	if (opcode == TMPFS_OP_FALLOCATE) {
		tmpfs_allocated(&subject, FIELD(io_sync, mode, request), FIELD(io_sync, off, request),
				FIELD(io_sync, len, request));
	} else if (result > 0) {
		end = FIELD(kiocb, ki_pos, request);
		if (opcode == TMPFS_OP_SPLICE || end < (u32)result)
			tmpfs_whole(&subject, 0);
		else
			rsyncfs_emit(&subject, RSYNCFS_WRITE, 0, end - result, result);
	}
	return 0;
}

/* An io_uring worker, where all writes to tmpfs go as long as it does not promise not to block. */
static __always_inline void tmpfs_touched_by_request(const struct rsyncfs_subject *subject, void *worker)
{
	void *request = CONTAINER(io_kiocb, work, FIELD(io_worker, cur_work, worker));
	u8 opcode = FIELD(io_kiocb, opcode, request);
	u64 offset, length = TMPFS_UNKNOWN;

	if (!tmpfs_request_writes(opcode))
		return;
	if (FIELD(file, f_inode, FIELD(io_kiocb, file, request)) != subject->inode || opcode == TMPFS_OP_SPLICE) {
		/* an overlay's file, or one whose place is known at the end only */
	} else if (!(FIELD(io_kiocb, flags, request) & TMPFS_REQ_F_CQE_SKIP)) {
		return; /* it will announce its completion */
	} else if (opcode == TMPFS_OP_FALLOCATE) {
		tmpfs_allocated(subject, FIELD(io_sync, mode, request), FIELD(io_sync, off, request),
				FIELD(io_sync, len, request));
		return;
	} else {
		offset = FIELD(kiocb, ki_pos, request);
		if (opcode == TMPFS_OP_WRITE || opcode == TMPFS_OP_WRITE_FIXED)
			length = FIELD(io_rw, len, request);
		rsyncfs_emit(subject, RSYNCFS_WRITE, RSYNCFS_F_BEFORE, offset, length);
		return;
	}
	tmpfs_whole(subject, RSYNCFS_F_BEFORE);
}

/* A task that uses io_uring: it goes on with its requests at the end of any system call. */
static __always_inline void tmpfs_touched_inline(const struct rsyncfs_subject *subject)
{
	u64 inode = (u64)subject->inode;
	struct tmpfs_silent *silent = tmpfs_silent.lookup(&inode);

	if (!silent)
		return;
	if (!silent->unknown && silent->start < silent->end)
		rsyncfs_emit(subject, RSYNCFS_WRITE, RSYNCFS_F_BEFORE, silent->start, silent->end - silent->start);
	else
		tmpfs_whole(subject, RSYNCFS_F_BEFORE);
}

/* A new ctime: does a call or request explain it that reports its range when it is done? */
static __always_inline int tmpfs_touched(void *inode)
{
	void *task = (void *)bpf_get_current_task();
	u32 flags = rsyncfs_task_flags();
	u64 thread = bpf_get_current_pid_tgid();
	struct rsyncfs_subject subject = {};
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
		tmpfs_touched_by_request(&subject, worker);
	else if (requests)
		tmpfs_touched_inline(&subject);
	else
		tmpfs_whole(&subject, RSYNCFS_F_BEFORE);
	return 0;
}

HOOK(tmpfs, ctime_ns_xchg, struct inode *, ...)
{
	return tmpfs_touched(ARGUMENT(void *, 0));
}

HOOK(tmpfs, ctime_xchg_skip, struct inode *, ...)
{
	return tmpfs_touched(ARGUMENT(void *, 0));
}

#if HAS_FIELD(maple_tree, ma_root) && HAS_FIELD(mm_struct, mm_mt) && HAS_FIELD(maple_range_64, pivot) &&                \
	HAS_FIELD(maple_arange_64, pivot) && HAS_FIELD(vm_area_struct, vm_flags)

/* Of a maple tree of a 64-bit kernel: levels that are followed, and the slots of its two kinds of nodes. */
#define TMPFS_LEVELS 6
#define TMPFS_RANGE_SLOTS 16
#define TMPFS_ARANGE_SLOTS 10
#define TMPFS_VM_SHARED 8

/* The slot of `entry` (a node with its type in the low bits) in which `address` lies. */
static __always_inline u64 tmpfs_step(u64 entry, u64 address, bool *leaf)
{
	u64 pivots[TMPFS_RANGE_SLOTS - 1] = {};
	void *node = (void *)(entry & ~0xffUL);
	u32 type = entry >> 3 & 15;
	u64 slot = 0, slots;
	u32 i;

	*leaf = type == ENUMERATOR(maple_leaf_64, 1);
	if (type == ENUMERATOR(maple_arange_64, 3)) {
		bpf_probe_read_kernel(pivots, 8 * (TMPFS_ARANGE_SLOTS - 1), ADDRESS(maple_arange_64, pivot, node));
		slots = (u64)ADDRESS(maple_arange_64, slot, node);
	} else if (type == ENUMERATOR(maple_leaf_64, 1) || type == ENUMERATOR(maple_range_64, 2)) {
		bpf_probe_read_kernel(pivots, 8 * (TMPFS_RANGE_SLOTS - 1), ADDRESS(maple_range_64, pivot, node));
		slots = (u64)ADDRESS(maple_range_64, slot, node);
	} else {
		return 0;
	}
#pragma unroll
	for (i = 0; i < TMPFS_RANGE_SLOTS - 1; i++) {
		/* a pivot is the last address of its slot; behind the last one in use is a zero */
		if (pivots[i] >= address || (i && !pivots[i]))
			break;
	}
	bpf_probe_read_kernel(&slot, sizeof(slot), (void *)(slots + 8 * i));
	return slot;
}

/* The mapping at `address` of the current process, or 0. */
static __always_inline void *tmpfs_mapping_at(u64 address)
{
	void *mm = FIELD(task_struct, mm, (void *)bpf_get_current_task());
	u64 entry;
	bool leaf = false;

	if (!mm)
		return 0;
	entry = (u64)FIELD(maple_tree, ma_root, ADDRESS(mm_struct, mm_mt, mm));
	if ((entry & 3) != 2 || entry <= 4096) /* the root is no node */
		return 0;
	for (u32 level = 0; level < TMPFS_LEVELS && !leaf; level++)
		entry = tmpfs_step(entry, address, &leaf);
	return leaf ? (void *)entry : 0;
}

/* A store that faults. The store itself follows when the fault has been served. */
static __always_inline int tmpfs_fault(u64 address, u64 code)
{
	struct rsyncfs_subject subject = {};
	u64 offset;
	void *vma;

	if (!(code & 2)) /* a load */
		return 0;
	vma = tmpfs_mapping_at(address);
	if (!vma || !(FIELD(vm_area_struct, vm_flags, vma) & TMPFS_VM_SHARED))
		return 0;
	offset = address - FIELD(vm_area_struct, vm_start, vma);
	if (address < offset || address >= FIELD(vm_area_struct, vm_end, vma))
		return 0;
	if (!tmpfs_watched(FIELD(vm_area_struct, vm_file, vma), &subject))
		return 0;
	offset = (offset & ~(u64)(PAGE_SIZE - 1)) + FIELD(vm_area_struct, vm_pgoff, vma) * PAGE_SIZE;
	rsyncfs_emit(&subject, RSYNCFS_FOLIO, 0, offset, PAGE_SIZE);
	return 0;
}

HOOK(tmpfs, page_fault_user, long unsigned int, struct pt_regs *, long unsigned int)
{
	return tmpfs_fault(ARGUMENT(u64, 0), ARGUMENT(u64, 2));
}

/* read(2) and its kin into a mapping */
HOOK(tmpfs, page_fault_kernel, long unsigned int, struct pt_regs *, long unsigned int)
{
	return tmpfs_fault(ARGUMENT(u64, 0), ARGUMENT(u64, 2));
}

#endif
#endif
