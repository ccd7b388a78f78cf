/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * What the hooks of functions are called with, however they are called.
 *
 * Between a pair of probes the arguments are remembered by thread and function, and only for watched filesystems (so
 * that the outer of two nested calls, an overlay's, is passed over). What stays there has not returned yet, or its
 * return was missed: a second call of the same function says the latter, and so does time (capture/calls.py).
 */
#ifndef RSYNCFS_VFS_H
#define RSYNCFS_VFS_H

struct rsyncfs_call {
	u64 argument[6];
	s64 result;
};

/* A trampoline's context: all arguments of the function, then its result. */
struct rsyncfs_words {
	u64 word[8];
};

struct rsyncfs_calling {
	u64 thread;
	u64 function;
};
struct rsyncfs_called {
	u64 argument[6];
	u64 ts; /* CLOCK_MONOTONIC, ns */
};
BPF_HASH(calls, struct rsyncfs_calling, struct rsyncfs_called, 16384);

/* An inode that tells which filesystem a call is about, by the type of one of its arguments. */
static __always_inline void *rsyncfs_inode_of_inode(u64 inode)
{
	return (void *)inode;
}

static __always_inline void *rsyncfs_inode_of_dentry(u64 dentry)
{
	return FIELD(dentry, d_inode, dentry);
}

static __always_inline void *rsyncfs_inode_of_file(u64 file)
{
	return FIELD(file, f_inode, file);
}

static __always_inline void *rsyncfs_inode_of_kiocb(u64 iocb)
{
	return FIELD(file, f_inode, FIELD(kiocb, ki_filp, iocb));
}

static __always_inline void *rsyncfs_inode_of_iomap_dio(u64 dio)
{
	return rsyncfs_inode_of_kiocb((u64)FIELD(iomap_dio, iocb, dio));
}

static __always_inline void *rsyncfs_inode_of_vm_fault(u64 vmf)
{
	return FIELD(file, f_inode, FIELD(vm_area_struct, vm_file, FIELD(vm_fault, vma, vmf)));
}

static __always_inline void *rsyncfs_inode_of_renamedata(u64 data)
{
	return FIELD(dentry, d_inode, FIELD(renamedata, old_dentry, data));
}

#if HAS_FIELD(xfs_inode, i_vnode)
static __always_inline void *rsyncfs_inode_of_xfs_inode(u64 ip)
{
	return ADDRESS(xfs_inode, i_vnode, ip);
}
#endif

#if HAS_FIELD(xfs_exchrange, file1)
static __always_inline void *rsyncfs_inode_of_xfs_exchrange(u64 range)
{
	return FIELD(file, f_inode, FIELD(xfs_exchrange, file1, range));
}
#endif

static __always_inline int rsyncfs_remember(u64 function, void *inode, const struct rsyncfs_call *call)
{
	struct rsyncfs_calling key = {};
	struct rsyncfs_called value = {};
	u32 dev;

	if (!inode)
		return 0;
	dev = FIELD(super_block, s_dev, FIELD(inode, i_sb, inode));
	if (!filesystems.lookup(&dev))
		return 0;
	key.thread = bpf_get_current_pid_tgid();
	key.function = function;
	if (calls.lookup(&key))
		rsyncfs_count(RSYNCFS_RETURN_MISSED);
	__builtin_memcpy(value.argument, call->argument, sizeof(value.argument));
	value.ts = bpf_ktime_get_ns();
	if (calls.update(&key, &value))
		rsyncfs_count(RSYNCFS_RETURN_MISSED);
	return 0;
}

static __always_inline bool rsyncfs_recall(u64 function, struct rsyncfs_call *call)
{
	struct rsyncfs_calling key = {.thread = bpf_get_current_pid_tgid(), .function = function};
	struct rsyncfs_called *value = calls.lookup(&key);

	if (!value)
		return false;
	__builtin_memcpy(call->argument, value->argument, sizeof(call->argument));
	calls.delete(&key);
	return true;
}

/* One of an array of registers: the arguments of processors that number them. */
static __always_inline u64 rsyncfs_register(void *registers, u32 number)
{
	return READ(u64, (u64)registers + 8 * number);
}

#endif
