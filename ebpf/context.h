/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * In which system call is the current task? Only used to report less, or more exactly: whatever is not known for sure
 * (kernel threads, users of io_uring, 32-bit tasks, a task that dumps core, other processors) is RSYNCFS_CALL_UNKNOWN,
 * and hooks then report the wider of what it may be.
 */
#ifndef RSYNCFS_CONTEXT_H
#define RSYNCFS_CONTEXT_H

#define RSYNCFS_CALL_UNKNOWN (-2L)
#define RSYNCFS_CALL_FAULT (-1L) /* no system call: a page fault, or an interrupt */

static __always_inline u32 rsyncfs_task_flags(void)
{
	return FIELD(task_struct, flags, (void *)bpf_get_current_task());
}

/* A kernel thread that cannot fault: it has no memory of a process. */
static __always_inline bool rsyncfs_memoryless(void)
{
	void *task = (void *)bpf_get_current_task();

	return FIELD(task_struct, flags, task) & RSYNCFS_PF_KTHREAD && !FIELD(task_struct, mm, task);
}

#if defined(__x86_64__) && HAS_FIELD(pt_regs, orig_ax) && HAS_FIELD(thread_info, status)

/* The number of the system call that the task entered last, or one of the two above. */
static __always_inline long rsyncfs_entered(void)
{
	void *task = (void *)bpf_get_current_task();

	if (FIELD(task_struct, flags, task) &
	    (RSYNCFS_PF_KTHREAD | RSYNCFS_PF_DUMPCORE | RSYNCFS_PF_IO_WORKER | RSYNCFS_PF_USER_WORKER))
		return RSYNCFS_CALL_UNKNOWN;
	if (FIELD(thread_info, status, ADDRESS(task_struct, thread_info, task)) & RSYNCFS_TS_COMPAT)
		return RSYNCFS_CALL_UNKNOWN;
	return FIELD(pt_regs, orig_ax, bpf_task_pt_regs(bpf_get_current_task_btf()));
}

/* The number of the system call that the task is in, or one of the two above. */
static __always_inline long rsyncfs_call(void)
{
#if HAS_FIELD(task_struct, io_uring)
	/* io_uring goes on with its requests at the end of any system call */
	if (FIELD(task_struct, io_uring, (void *)bpf_get_current_task()))
		return RSYNCFS_CALL_UNKNOWN;
#endif
	return rsyncfs_entered();
}

/* A data hook of the filesystem reports what these write, and they cannot store into a mapped file. */
static __always_inline bool rsyncfs_call_writes(long call)
{
	return call == 1 /* write */ || call == 18 /* pwrite64 */ || call == 20 /* writev */ ||
	       call == 296 /* pwritev */ || call == 328 /* pwritev2 */ || call == 40 /* sendfile */ ||
	       call == 275 /* splice */ || call == 326 /* copy_file_range */ || call == 285 /* fallocate */;
}

/* These cannot set a file's size, but by writing; nor can a fault. */
static __always_inline bool rsyncfs_call_keeps_size(long call)
{
	return call == RSYNCFS_CALL_FAULT || call == 1 || call == 18 || call == 20 || call == 296 || call == 328 ||
	       call == 40 || call == 275 /* the writing ones */ ||
	       (call >= 90 && call <= 94) /* chmod to lchown */ || call == 268 /* fchmodat */ ||
	       call == 452 /* fchmodat2 */ || call == 260 /* fchownat */ || call == 132 /* utime */ ||
	       call == 235 /* utimes */ || call == 261 /* futimesat */ || call == 280 /* utimensat */ ||
	       (call >= 188 && call <= 199) /* *xattr */ || call == 463 /* setxattrat */ ||
	       call == 466 /* removexattrat */ || (call >= 82 && call <= 84) /* rename, mkdir, rmdir */ ||
	       (call >= 86 && call <= 88) /* link, unlink, symlink */ || (call >= 263 && call <= 266) /* *at of these */ ||
	       call == 316 /* renameat2 */;
}

/* The arguments of fallocate(2), if that is where the task is. (io_uring leaves its own to workers.) */
static __always_inline bool rsyncfs_fallocate(u64 *offset, u64 *length)
{
	void *regs;

	if (rsyncfs_entered() != 285)
		return false;
	regs = (void *)bpf_task_pt_regs(bpf_get_current_task_btf());
	*offset = FIELD(pt_regs, dx, regs);
	*length = FIELD(pt_regs, r10, regs);
	return true;
}

/* The open file behind a descriptor of the current task; 0 if there is none. */
static __always_inline void *rsyncfs_file(s32 fd)
{
	void *files = FIELD(task_struct, files, (void *)bpf_get_current_task());
	void *table = FIELD(files_struct, fdt, files);

	if (fd < 0 || (u32)fd >= FIELD(fdtable, max_fds, table))
		return 0;
	return READ(void *, (u64)FIELD(fdtable, fd, table) + 8 * (u64)(u32)fd);
}

#else

static __always_inline long rsyncfs_call(void)
{
	return RSYNCFS_CALL_UNKNOWN;
}

static __always_inline bool rsyncfs_call_writes(long call)
{
	return false;
}

static __always_inline bool rsyncfs_call_keeps_size(long call)
{
	return false;
}

static __always_inline bool rsyncfs_fallocate(u64 *offset, u64 *length)
{
	return false;
}

#endif
#endif
