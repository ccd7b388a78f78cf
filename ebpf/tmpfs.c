/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * tmpfs has no tracepoints of its own. Its writes are seen where they leave the kernel: at the exit of the system calls
 * that write (here; those of libaio in aio.c), and at the completion of io_uring requests (requests.c); all are after
 * the bytes. What writes without any of these shows by its ctime (there too), stores through a mapping when they fault
 * (faults.c). Sizes are the inode family's: shmem_setattr() sets the size first and the ctime next.
 *
 * A call at the file's own position tells only how much it wrote. Where is taken from the positions at its entry and
 * exit, which other users of the same open file move too: forwards (then the range is too wide, no harm) or, by
 * lseek(), anywhere. A call that overlapped a jump is reported as a write of unknown place, as is whatever else does
 * not add up.
 */

#ifdef __x86_64__

#define TMPFS_O_APPEND 02000
#define TMPFS_RWF_APPEND 0x10
#define TMPFS_RWF_NOAPPEND 0x20
#define TMPFS_FALLOC_KEEP_SIZE 1
#define TMPFS_JUMPS 65536    /* a power of two */
#define TMPFS_UNKNOWN (~0UL) /* a place, or a length to the end */

/* What a record will say, so that each program has one place to submit it. */
struct tmpfs_news {
	u64 offset;
	u64 length;
	u32 kind; /* 0: there is nothing to say */
	u32 flags;
};

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

static __always_inline struct tmpfs_news tmpfs_of(u32 kind, u64 offset, u64 length)
{
	return (struct tmpfs_news){.kind = kind, .offset = offset, .length = length};
}

/* Written, but not known where. */
static __always_inline struct tmpfs_news tmpfs_anywhere(void)
{
	return tmpfs_of(RSYNCFS_WHOLE, 0, TMPFS_UNKNOWN);
}

static __always_inline void tmpfs_tell(const struct rsyncfs_subject *subject, const struct tmpfs_news *news)
{
	if (news->kind)
		rsyncfs_emit(subject, news->kind, news->flags, news->offset, news->length);
}

/*
 * What was appended lies between the sizes before and after, other writers' bytes with it. `position` is where the
 * open file's position is now, or TMPFS_UNKNOWN.
 */
static __always_inline struct tmpfs_news tmpfs_appended(void *inode, u64 size, u64 position, u64 done)
{
	u64 now = FIELD(inode, i_size, inode);

	if (position != TMPFS_UNKNOWN && position - done < size)
		size = position - done; /* truncated in between */
	if (now < size || now - size < done)
		return tmpfs_anywhere();
	return tmpfs_of(RSYNCFS_WRITE, size, now - size);
}

/* An fallocate() that succeeded; one that fails has changed nothing. */
static __always_inline struct tmpfs_news tmpfs_allocated(void *inode, u32 mode, u64 offset, u64 length)
{
	struct tmpfs_news news = {};

	if (mode & ~TMPFS_FALLOC_KEEP_SIZE) {
		news = tmpfs_of(RSYNCFS_WRITE, offset, length);
		news.flags = RSYNCFS_F_HOLES;
	} else if (!mode) { /* may have grown, without a new ctime */
		news = tmpfs_of(RSYNCFS_SIZE, FIELD(inode, i_size, inode), 0);
	}
	return news;
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
	case 239:
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
static __always_inline struct tmpfs_news tmpfs_written(struct tmpfs_plan *plan, struct tmpfs_call *call, u64 done)
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
		return tmpfs_anywhere();
	if (append) {
		if (plan->way != TMPFS_OWN || call->offset == TMPFS_UNKNOWN)
			position = TMPFS_UNKNOWN;
		return tmpfs_appended(call->subject.inode, call->size, position, done);
	}
	if (call->offset == TMPFS_UNKNOWN || position < call->offset + done)
		return tmpfs_anywhere();
	return tmpfs_of(RSYNCFS_WRITE, call->offset, position - call->offset);
}

HOOK(tmpfs, sys_exit, struct pt_regs *, long int)
{
	void *regs = ARGUMENT(void *, 0);
	s64 result = ARGUMENT(s64, 1);
	u64 number = FIELD(pt_regs, orig_ax, regs);
	u64 thread = bpf_get_current_pid_tgid();
	struct tmpfs_news news = tmpfs_anywhere();
	struct rsyncfs_subject subject = {};
	struct tmpfs_plan plan = {};
	struct tmpfs_call call = {};
	struct tmpfs_call *entry;
	struct tmpfs_jumps *jumps;
	void *file;

	if (!tmpfs_number(number) || !tmpfs_plan_of(number, regs, &plan))
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
	if (plan.way == TMPFS_SEEK || result < 0 || (!result && plan.way != TMPFS_ALLOCATE))
		return 0;
	if (!entry || file != call.file) { /* begun unseen, or the descriptor changed hands during the call */
		if (tmpfs_watched(file, &subject))
			tmpfs_tell(&subject, &news);
	} else {
		call.subject.flags = rsyncfs_mapped(FIELD(inode, i_mapping, call.subject.inode));
		news = plan.way == TMPFS_ALLOCATE ?
			       tmpfs_allocated(call.subject.inode, FIELD(pt_regs, si, regs), FIELD(pt_regs, dx, regs),
					       FIELD(pt_regs, r10, regs)) :
			       tmpfs_written(&plan, &call, result);
	}
	if (entry)
		tmpfs_tell(&call.subject, &news);
	return 0;
}

#endif
