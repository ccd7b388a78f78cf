/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * btrfs marks ranges of a file's io_tree before it changes them, and one tracepoint tells of every mark:
 *
 *	DELALLOC	bytes were put into the page cache: write() and its kin, a mapping's first store into a clean page,
 *			the zeroed rest of a block at either end of a truncation or a hole. The bytes are there already,
 *			the new size is not yet.
 *	LOCKED to ~0	the file was truncated; i_size is the new size already.
 *	LOCKED		everything else that changes extents (holes, clones, encoded writes), before it happens; but reads,
 *			writeback and fsync lock as well.
 *
 * Who changes extents holds the inode's lock exclusively, readers and writeback do not: the owner of i_rwsem tells them
 * apart in every context (system calls, io_uring, nfsd, a loop device). Of what remains, the system call's number tells
 * which locks are of no interest; a task without a number that we know is always reported.
 *
 * Direct I/O that btrfs does not turn into buffered I/O is the iomap family's.
 */

#define BTRFS_SECTOR 4096 /* of the x86-64 kernels on which system calls are told apart */

#define BTRFS_CLEANER 0x6c632d7366727462UL /* the first 8 of "btrfs-cleaner" */
#define BTRFS_LAST (1UL << 63) /* where the last block ends that a file can have */
#define BTRFS_FALLOC_KEEP_SIZE 1
#define BTRFS_FALLOC_PUNCH_HOLE 2
#define BTRFS_FALLOC_ZERO_RANGE 16
#define BTRFS_IOC_DEFRAG_NR 0x50009402
#define BTRFS_IOC_DEFRAG_RANGE_NR 0x40309410
#define BTRFS_FIDEDUPERANGE_NR 0xc0189436
#define BTRFS_FICLONE_NR 0x40049409
#define BTRFS_FICLONERANGE_NR 0x4020940d

/* What the lock of a range means, judged by who takes it. */
enum btrfs_reason {
	BTRFS_CONTENT,	/* the range's bytes may change */
	BTRFS_KEEPSIZE, /* the same, but the size does not */
	BTRFS_GROWTH,	/* only the size changes */
	BTRFS_NOTHING,	/* neither, or a hook reports it better */
};

struct btrfs_range {
	u64 start;
	u64 end;
};

/* struct file_clone_range */
struct btrfs_clone {
	s64 from; /* a descriptor */
	u64 offset;
	u64 length; /* 0 is to the end of the source */
	u64 target; /* offset */
};

/* Whether the current task is the one that holds the inode's lock for writing. */
static __always_inline bool btrfs_owns(void *inode)
{
#if HAS_FIELD(rw_semaphore, owner)
	void *owner = ADDRESS(rw_semaphore, owner, ADDRESS(inode, i_rwsem, inode));

	/* the lowest three bits are flags; a reader's has the first of them set */
	return ((u64)FIELD(atomic_long_t, counter, owner) & ~6UL) == bpf_get_current_task();
#else
	return true;
#endif
}

#ifdef __x86_64__
static __always_inline void *btrfs_inode_of(int fd)
{
	void *file = rsyncfs_file(fd);

	return file ? FIELD(file, f_inode, file) : 0;
}

/*
 * Narrow `range` to what the call changes. Whoever changes extents waits for the dirty pages that lie there first, and
 * writeback locks all dirty pages that follow them as well.
 */
static __always_inline void btrfs_narrow(struct btrfs_range *range, const struct btrfs_range *to)
{
	if (range->start < to->start)
		range->start = to->start;
	if (range->end > to->end)
		range->end = to->end;
}

/*
 * The same for arguments in the caller's memory: if they do not explain the lock, they may have been overwritten. With
 * large folios writeback locks from the beginning of one on.
 */
static __always_inline void btrfs_narrow_told(struct btrfs_range *range, const struct btrfs_range *to)
{
	if (range->start < to->end && range->end > to->start)
		btrfs_narrow(range, to);
}

static __always_inline struct btrfs_range btrfs_blocks(u64 offset, u64 length)
{
	u64 end = offset + length;

	if (end < offset || end > BTRFS_LAST)
		end = BTRFS_LAST;
	return (struct btrfs_range){
		.start = offset & ~(u64)(BTRFS_SECTOR - 1),
		.end = (end + BTRFS_SECTOR - 1) & ~(u64)(BTRFS_SECTOR - 1),
	};
}

/* Cloning writes its source back under both locks: that is no change of the source. */
static __always_inline bool btrfs_is_source(void *inode, int from, int to)
{
	void *target = btrfs_inode_of(to);

	return btrfs_inode_of(from) == inode && target != inode && btrfs_owns(target);
}

static __always_inline enum btrfs_reason btrfs_of_clone(void *inode, struct btrfs_range *range, int to,
							const struct btrfs_clone *clone)
{
	void *source = btrfs_inode_of(clone->from);
	u64 length = clone->length;
	struct btrfs_range changed;

	if (btrfs_is_source(inode, clone->from, to))
		return BTRFS_NOTHING;
	if (!length) { /* to the end of the source, which is locked as well */
		if (!source || !btrfs_owns(source))
			return BTRFS_CONTENT;
		length = FIELD(inode, i_size, source);
		if (length < clone->offset)
			return BTRFS_CONTENT;
		length -= clone->offset;
	}
	changed = btrfs_blocks(clone->target, length);
	btrfs_narrow_told(range, &changed);
	return BTRFS_CONTENT;
}

static __always_inline enum btrfs_reason btrfs_of_ioctl(void *inode, void *regs, struct btrfs_range *range)
{
	u32 command = FIELD(pt_regs, si, regs);
	u64 argument = FIELD(pt_regs, dx, regs);
	struct btrfs_clone clone = {};

	switch (command) {
	case BTRFS_IOC_DEFRAG_NR:
	case BTRFS_IOC_DEFRAG_RANGE_NR:
	case BTRFS_FIDEDUPERANGE_NR:
		return BTRFS_NOTHING; /* other extents, the same bytes */
	case BTRFS_FICLONERANGE_NR:
		if (bpf_probe_read_user(&clone, sizeof(clone), (void *)argument))
			return BTRFS_CONTENT;
		break;
	case BTRFS_FICLONE_NR:
		clone.from = (s32)argument;
		break;
	default:
		return BTRFS_CONTENT;
	}
	return btrfs_of_clone(inode, range, FIELD(pt_regs, di, regs), &clone);
}

static __always_inline enum btrfs_reason btrfs_of_fallocate(void *regs, struct btrfs_range *range)
{
	struct btrfs_range changed = btrfs_blocks(FIELD(pt_regs, dx, regs), FIELD(pt_regs, r10, regs));
	u32 mode = FIELD(pt_regs, si, regs);

	if (!(mode & ~BTRFS_FALLOC_KEEP_SIZE))
		return mode ? BTRFS_NOTHING : BTRFS_GROWTH; /* what is allocated reads as it did before */
	if (mode & (BTRFS_FALLOC_PUNCH_HOLE | BTRFS_FALLOC_ZERO_RANGE))
		btrfs_narrow(range, &changed);
	return mode & BTRFS_FALLOC_KEEP_SIZE ? BTRFS_KEEPSIZE : BTRFS_CONTENT;
}

static __always_inline enum btrfs_reason btrfs_of_copy(void *inode, void *regs, struct btrfs_range *range)
{
	u64 pointer = FIELD(pt_regs, r10, regs);
	struct btrfs_range changed;
	u64 offset = 0;

	if (btrfs_is_source(inode, FIELD(pt_regs, di, regs), FIELD(pt_regs, dx, regs)))
		return BTRFS_NOTHING;
	/* without a pointer it began at the open file's position, which others can have moved since */
	if (pointer && !bpf_probe_read_user(&offset, sizeof(offset), (void *)pointer)) {
		changed = btrfs_blocks(offset, FIELD(pt_regs, r8, regs));
		btrfs_narrow_told(range, &changed);
	}
	return BTRFS_CONTENT;
}

static __always_inline enum btrfs_reason btrfs_of_call(void *inode, long call, void *regs, struct btrfs_range *range)
{
	switch (call) {
	case 16: /* ioctl */
		return btrfs_of_ioctl(inode, regs, range);
	case 285: /* fallocate */
		return btrfs_of_fallocate(regs, range);
	case 326: /* copy_file_range */
		return btrfs_of_copy(inode, regs, range);
	case 76: /* truncate */
	case 77: /* ftruncate */
		return BTRFS_GROWTH;
	case 2:	  /* open */
	case 85:  /* creat */
	case 257: /* openat */
	case 437: /* openat2 */
	case 1:	  /* write, and all that DELALLOC or the iomap family reports */
	case 18:  /* pwrite64 */
	case 20:  /* writev */
	case 40:  /* sendfile */
	case 209: /* io_submit */
	case 275: /* splice */
	case 296: /* pwritev */
	case 328: /* pwritev2 */
	case 26:  /* msync, and all that only writes back */
	case 74:  /* fsync */
	case 75:  /* fdatasync */
	case 162: /* sync */
	case 277: /* sync_file_range */
	case 306: /* syncfs */
	case 82:  /* rename (it writes back what goes over another file), and all that changes names only */
	case 86:  /* link */
	case 87:  /* unlink */
	case 263: /* unlinkat */
	case 264: /* renameat */
	case 265: /* linkat */
	case 316: /* renameat2 */
		return BTRFS_NOTHING;
	}
	return BTRFS_CONTENT;
}
#endif

static __always_inline enum btrfs_reason btrfs_judge(void *inode, struct btrfs_range *range)
{
	u64 comm = 0;
	long call = rsyncfs_call();

	if (call == RSYNCFS_CALL_UNKNOWN) { /* nfsd and loop devices punch, zero and clone; the cleaner defragments */
		if (!(rsyncfs_task_flags() & RSYNCFS_PF_KTHREAD))
			return BTRFS_CONTENT;
		bpf_probe_read_kernel(&comm, sizeof(comm),
				      ADDRESS(task_struct, comm, (void *)bpf_get_current_task()));
		return comm == BTRFS_CLEANER ? BTRFS_NOTHING : BTRFS_CONTENT;
	}
#ifdef __x86_64__
	return btrfs_of_call(inode, call, (void *)bpf_task_pt_regs(bpf_get_current_task_btf()), range);
#else
	return BTRFS_CONTENT;
#endif
}

static __always_inline void btrfs_locked(struct rsyncfs_subject *subject, u64 start, u64 len)
{
	struct btrfs_range range = {.start = start, .end = start + len};
	u64 size = FIELD(inode, i_size, subject->inode);
	enum btrfs_reason reason;

	if (!range.end) { /* to the last byte there can be */
		rsyncfs_emit(subject, RSYNCFS_SIZE, RSYNCFS_F_BEFORE, size, 0);
		return;
	}
	if (!btrfs_owns(subject->inode))
		return;
	reason = btrfs_judge(subject->inode, &range);
	if (reason == BTRFS_GROWTH) {
		/* the size grows from here; a truncation locks every folio behind its new size */
		if (start >= size && start - size < BTRFS_SECTOR)
			rsyncfs_emit(subject, RSYNCFS_SIZE, RSYNCFS_F_BEFORE, size, 0);
		return;
	}
	if (reason == BTRFS_KEEPSIZE && range.end > size)
		range.end = size;
	if (reason != BTRFS_NOTHING && range.start < range.end)
		rsyncfs_emit(subject, RSYNCFS_WRITE, RSYNCFS_F_BEFORE | RSYNCFS_F_HOLES, range.start,
			     range.end - range.start);
}

/* The inode (struct inode) whose extents a btrfs tree describes; other trees have a filesystem there. */
static __always_inline void *btrfs_tree_inode(void *tree)
{
#if HAS_FIELD(extent_io_tree, private_data)
	return FIELD(extent_io_tree, private_data, tree);
#else
	return ADDRESS(btrfs_inode, vfs_inode, FIELD(extent_io_tree, inode, tree));
#endif
}

HOOK(btrfs, btrfs_set_extent_bit, struct extent_io_tree *, u64, u64, unsigned int)
{
	void *tree = ARGUMENT(void *, 0);
	u64 start = ARGUMENT(u64, 1);
	u64 len = ARGUMENT(u64, 2);
	u32 bits = ARGUMENT(u32, 3);
	struct rsyncfs_subject subject = {};

	if (!(bits & RSYNCFS_EXTENT_DELALLOC) && bits != RSYNCFS_EXTENT_LOCKED)
		return 0;
	if (bits & RSYNCFS_EXTENT_DEFRAG) /* dirtied to be written elsewhere, unchanged */
		return 0;
	if (FIELD(extent_io_tree, owner, tree) != ENUMERATOR(IO_TREE_INODE_IO))
		return 0;
	if (!rsyncfs_watched_file(btrfs_tree_inode(tree), RSYNCFS_BTRFS, &subject))
		return 0;
	if (bits & RSYNCFS_EXTENT_DELALLOC)
		rsyncfs_emit(&subject, rsyncfs_call() == RSYNCFS_CALL_FAULT ? RSYNCFS_FOLIO : RSYNCFS_WRITE, 0, start, len);
	else
		btrfs_locked(&subject, start, len);
	return 0;
}
