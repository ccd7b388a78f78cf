/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Writes of libaio to tmpfs, which have all been done when io_submit(2) returns. Control blocks are read before the
 * call, because they may be used again as soon as their writes are done.
 */

#ifdef __x86_64__

#define AIO_SUBMIT 209
#define AIO_SUBMIT_COMPAT 248
#define AIO_PWRITE 1
#define AIO_PWRITEV 8
#define AIO_BLOCKS 256 /* of one io_submit() that are looked at */
#define AIO_SEGMENTS 8 /* of one IOCB_CMD_PWRITEV that are added up */

/* struct iocb of little-endian machines: a control block of libaio, part of the system call interface. */
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

HOOK(aio, sys_enter, struct pt_regs *, long int)
{
	void *regs = ARGUMENT(void *, 0);
	struct aio_key key = {.thread = bpf_get_current_pid_tgid()};
	s64 count;

	if (!aio_submits(ARGUMENT(u64, 1)))
		return 0;
	count = aio_count(regs);
	for (u32 i = 0; i < AIO_BLOCKS; i++) {
		struct aio_write write = {};
		struct aio_block block = {};
		void *file;

		if (i >= count)
			break;
		if (!aio_read(regs, i, &block)) { /* swapped out: the kernel will read it */
			rsyncfs_count_loss(RSYNCFS_LOST_MAP_FULL);
			continue;
		}
		if (block.opcode != AIO_PWRITE && block.opcode != AIO_PWRITEV)
			continue;
		file = tmpfs_file(block.fd);
		if (!tmpfs_watched(file, &write.subject))
			continue;
		write.offset = block.offset;
		write.length = block.opcode == AIO_PWRITEV ? aio_bytes(block.buffer, block.bytes) : block.bytes;
		write.append = FIELD(file, f_flags, file) & TMPFS_O_APPEND || block.rw_flags & TMPFS_RWF_APPEND;
		write.size = FIELD(inode, i_size, write.subject.inode);
		key.index = i;
		if (aio_writes.update(&key, &write))
			rsyncfs_count_loss(RSYNCFS_LOST_MAP_FULL);
	}
	return 0;
}

static __always_inline struct tmpfs_news aio_written(struct aio_write *write)
{
	if (!write->append)
		return tmpfs_of(RSYNCFS_WRITE, write->offset, write->length);
	return tmpfs_appended(write->subject.inode, write->size, TMPFS_UNKNOWN, write->length);
}

HOOK(aio, sys_exit, struct pt_regs *, long int)
{
	void *regs = ARGUMENT(void *, 0);
	s64 result = ARGUMENT(s64, 1);
	struct aio_key key = {.thread = bpf_get_current_pid_tgid()};
	struct aio_write *write;
	struct tmpfs_news news;
	s64 count;

	if (!aio_submits(FIELD(pt_regs, orig_ax, regs)))
		return 0;
	count = aio_count(regs);
	/* never looked at: whoever submits so many at once is not known to write here, but may */
	if (result > AIO_BLOCKS)
		rsyncfs_count_loss(RSYNCFS_LOST_MAP_FULL);
	/* two loops, and no test of `result` behind the first: the verifier would follow each outcome of each turn */
	for (u32 i = 0; i < AIO_BLOCKS; i++) {
		if (i >= result)
			break;
		key.index = i;
		write = aio_writes.lookup(&key);
		if (!write)
			continue;
		news = aio_written(write);
		rsyncfs_emit(&write->subject, news.kind, 0, news.offset, news.length);
	}
	for (u32 i = 0; i < AIO_BLOCKS; i++) {
		if (i >= count)
			break;
		key.index = i;
		aio_writes.delete(&key);
	}
	return 0;
}

#endif
