/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * What system calls have written to tmpfs, told at their exit.
 */

#ifdef __x86_64__

#define AIO_PART 64 /* divides AIO_BLOCKS */

/* What a record will say, so that each program has one place to submit it. */
struct tmpfs_news {
	u64 offset;
	u64 length;
	u32 kind; /* 0: there is nothing to say */
	u32 flags;
};

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

static __always_inline struct tmpfs_news aio_written(struct aio_write *write)
{
	if (!write->append)
		return tmpfs_of(RSYNCFS_WRITE, write->offset, write->length);
	return tmpfs_appended(write->subject.inode, write->size, TMPFS_UNKNOWN, write->length);
}

/* Tell of the blocks from `part` on that were submitted, and forget all. */
static __always_inline void aio_settle(struct bpf_raw_tracepoint_args *ctx, struct aio_key *key, u32 part, s64 count)
{
	struct aio_write *write;
	struct tmpfs_news news;

#pragma nounroll
	for (u32 i = part; i < part + AIO_PART; i++) {
		if (i >= count)
			break;
		key->index = i;
		write = aio_writes.lookup(key);
		if (!write)
			continue;
		/* the result, read anew: the verifier would remember each outcome of each turn */
		if (i < *(volatile s64 *)&ctx->args[1]) {
			news = aio_written(write);
			/* repeats and all: the verifier looks at each turn of the loop anew */
			rsyncfs_submit(&write->subject, news.kind, 0, news.offset, news.length, 0);
		}
		aio_writes.delete(key);
	}
}

/* The end of an io_submit(). */
static __always_inline void aio_told(struct bpf_raw_tracepoint_args *ctx, void *regs)
{
	struct aio_key key = {.thread = bpf_get_current_pid_tgid()};
	s64 count = aio_count(regs);

	/* never looked at: whoever submits so many at once is not known to write here, but may */
	if (ARGUMENT(s64, 1) > AIO_BLOCKS)
		rsyncfs_count(RSYNCFS_LOST_MAP_FULL);
	/* in parts: the verifier compares every turn of a loop with all turns before */
#pragma unroll
	for (u32 part = 0; part < AIO_BLOCKS; part += AIO_PART)
		aio_settle(ctx, &key, part, count);
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

HOOK(results, sys_exit, struct pt_regs *, long int)
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

	if (!tmpfs_number(number))
		return 0;
	if (aio_submits(number)) {
		aio_told(ctx, regs);
		return 0;
	}
	if (!tmpfs_plan_of(number, regs, &plan))
		return 0;
	entry = tmpfs_calls.lookup(&thread);
	/* what can have waited since before these hooks were there; all else that began unseen shows by its ctime */
	if (!entry && plan.way != TMPFS_COPY && plan.way != TMPFS_POINTER)
		return 0;
	file = rsyncfs_file(plan.fd);
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
