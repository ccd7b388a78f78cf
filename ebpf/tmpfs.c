/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * tmpfs has no tracepoints of its own. Its writes are seen where they leave the kernel: at the exit of the system calls
 * that write (remembered here at their entry, told in results.c), and at the completion of io_uring requests
 * (requests.c); both are after the bytes. What writes in other ways shows by its ctime (requests.c too), stores through
 * a mapping when they fault (faults.c). Sizes are the inode family's: shmem_setattr() sets the size first and the ctime
 * next.
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

#define AIO_SUBMIT 209
#define AIO_SUBMIT_COMPAT 248
#define AIO_PWRITE 1
#define AIO_PWRITEV 8
#define AIO_BLOCKS 256 /* of one io_submit() that are looked at */
#define AIO_SEGMENTS 8 /* of one IOCB_CMD_PWRITEV that are added up */

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

static __always_inline bool tmpfs_watched(void *file, struct rsyncfs_subject *subject)
{
	return file && rsyncfs_watched_file(FIELD(file, f_inode, file), RSYNCFS_TMPFS, subject);
}

static __always_inline bool tmpfs_compat(void)
{
	return FIELD(thread_info, status, (void *)bpf_get_current_task()) & RSYNCFS_TS_COMPAT;
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
	case 209: /* io_submit */
	case 239:
	case 248: /* the same */
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

/*
 * struct iocb of little-endian machines: a control block of libaio, part of the system call interface. Writes to tmpfs
 * have all been done when io_submit(2) returns.
 */
struct aio_block {
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

struct aio_segment {
	u64 base;
	u64 length;
};

/* One write of an io_submit() under way. */
struct aio_key {
	u64 thread;
	u64 index;
};
struct aio_write {
	struct rsyncfs_subject subject;
	u64 offset;
	u64 length;
	u64 size;
	u64 append;
};
BPF_HASH(aio_writes, struct aio_key, struct aio_write, 16384);

static __always_inline bool aio_submits(u64 number)
{
	return number == AIO_SUBMIT || (number == AIO_SUBMIT_COMPAT && tmpfs_compat());
}

/* How many control blocks the call was given. */
static __always_inline s64 aio_count(void *regs)
{
	return tmpfs_compat() ? FIELD(pt_regs, cx, regs) : FIELD(pt_regs, si, regs);
}

static __always_inline bool aio_read(void *regs, u32 index, struct aio_block *block)
{
	u64 list = FIELD(pt_regs, dx, regs);
	u64 bytes = tmpfs_compat() ? 4 : 8;
	u64 pointer = 0;

	if (bpf_probe_read_user(&pointer, bytes, (void *)(list + bytes * index)))
		return false;
	return !bpf_probe_read_user(block, sizeof(*block), (void *)pointer);
}

/* The bytes of an array of struct iovec; TMPFS_UNKNOWN if it is long or cannot be read. */
static __always_inline u64 aio_bytes(u64 segments, u64 count)
{
	struct aio_segment copy[AIO_SEGMENTS] = {};
	u64 total = 0;

	if (count > AIO_SEGMENTS || tmpfs_compat())
		return TMPFS_UNKNOWN;
	if (bpf_probe_read_user(copy, count * sizeof(struct aio_segment), (void *)segments))
		return TMPFS_UNKNOWN;
#pragma unroll
	for (u32 i = 0; i < AIO_SEGMENTS; i++)
		total += copy[i].length;
	return total;
}

/* Control blocks are read before the call: they may be used again as soon as their writes are done. */
static __always_inline void aio_remember(void *regs)
{
	struct aio_key key = {.thread = bpf_get_current_pid_tgid()};
	s64 count = aio_count(regs);

#pragma nounroll
	for (u32 i = 0; i < AIO_BLOCKS; i++) {
		struct aio_write write = {};
		struct aio_block block = {};
		void *file;

		if (i >= count)
			break;
		if (!aio_read(regs, i, &block)) { /* swapped out: the kernel will read it */
			rsyncfs_count(RSYNCFS_LOST_MAP_FULL);
			continue;
		}
		if (block.opcode != AIO_PWRITE && block.opcode != AIO_PWRITEV)
			continue;
		file = rsyncfs_file(block.fd);
		if (!tmpfs_watched(file, &write.subject))
			continue;
		write.offset = block.offset;
		write.length = block.opcode == AIO_PWRITEV ? aio_bytes(block.buffer, block.bytes) : block.bytes;
		write.append = FIELD(file, f_flags, file) & TMPFS_O_APPEND || block.rw_flags & TMPFS_RWF_APPEND;
		write.size = FIELD(inode, i_size, write.subject.inode);
		key.index = i;
		if (aio_writes.update(&key, &write))
			rsyncfs_count(RSYNCFS_LOST_MAP_FULL);
	}
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
	if (aio_submits(number)) {
		aio_remember(regs);
		return 0;
	}
	if (!tmpfs_plan_of(number, regs, &plan))
		return 0;
	call.file = rsyncfs_file(plan.fd);
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

#endif
