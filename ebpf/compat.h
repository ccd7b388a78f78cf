/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Where kernels differ. No struct of the kernel is ever compiled: each member's offset and type come from the running
 * kernel's BTF, as constants that the loader writes in front of this file after reading every FIELD(), ADDRESS() and
 * HAS_FIELD() in these sources. (A compiler's idea of a layout can be wrong without a word; BTF's is the kernel's own.)
 *
 * The arguments are plain words, never macros or nested members, because the loader finds them in the text:
 *
 *	u64 number = FIELD(inode, i_ino, inode);	  the value of a number or pointer member
 *	void *file = READ(void *, address);		  the same of what BTF does not describe: a table's entry
 *	void *folio_data = ADDRESS(xfs_inode, i_vnode, ip); the address of a member that is itself a struct
 *	#if HAS_FIELD(iomap_iter, iter_start_pos)	  a member that some kernels lack
 *
 * A family that reads a member this kernel lacks, without asking HAS_FIELD() first, is left out and reported.
 */
#ifndef RSYNCFS_COMPAT_H
#define RSYNCFS_COMPAT_H

/*
 * A number in the kernel's memory, 0 if there is none. What costs is a call for each, so that where the kernel has
 * bpf_rdonly_cast() (6.2) it is a load: the verifier puts a move in place of that call, and a fault in such a load
 * yields 0. RSYNCFS_CAST is the id of a struct that begins with a number of 64 bits; the loader gives the call its
 * target.
 */
#ifdef RSYNCFS_CAST
static void *(*rsyncfs_cast)(u64 address, u32 type) = (void *)RSYNCFS_CAST_CALL;
#define READ(type, address) (*(type *)rsyncfs_cast((u64)(address), RSYNCFS_CAST))
#else
#define READ(type, address)                                                                                            \
	({                                                                                                             \
		type read_value = 0;                                                                                   \
		bpf_probe_read_kernel(&read_value, sizeof(read_value), (void *)(u64)(address));                        \
		read_value;                                                                                            \
	})
#endif

#define FIELD(type, member, pointer) READ(RSYNCFS_TYPE_##type##__##member, ADDRESS(type, member, pointer))
#define ADDRESS(type, member, pointer) ((void *)((u64)(pointer) + RSYNCFS_OFFSET_##type##__##member))
/* The struct that holds the member at `pointer`. */
#define CONTAINER(type, member, pointer) ((void *)((u64)(pointer)-RSYNCFS_OFFSET_##type##__##member))
#define HAS_FIELD(type, member) RSYNCFS_HAS_##type##__##member

/* The value of an enumerator of the kernel: ENUMERATOR(name), or ENUMERATOR(name, value where there is none). */
#define ENUMERATOR(name, ...) RSYNCFS_ENUM_##name(__VA_ARGS__)

/*
 * What is done at a raw tracepoint. What follows its name are the types of its arguments as BTF spells them (pointers as
 * "struct inode *"); a hook whose tracepoint is missing or has other arguments is left out and reported. "..." at the
 * end stands for arguments that do not matter. The loader writes the programs around the body.
 *
 *	INTERRUPTS(tracepoint)	interrupts come there too, and may meet a program under way: there are always several,
 *				and each calls the body, which has to see that a call is told once
 */
#define HOOK(family, tracepoint, ...)                                                                                  \
	static __always_inline int hook__##family##__##tracepoint(struct bpf_raw_tracepoint_args *ctx)
#define INTERRUPTS(tracepoint)
#define ARGUMENT(type, index) ((type)ctx->args[index])

/*
 * What is done at the entry (ENTRY) or after the return (AFTER) of a function of the kernel. `fstype` is the filesystem
 * whose sources need it, or any. What follows the function's name are the types of those of its arguments that the body
 * is given, in the kernel's order; others may stand between them, so that a new one (the idmap since 5.12) does no harm.
 * The loader writes the programs around the body: for a trampoline (fentry, fexit), and for a pair of probes.
 *
 *	INSTEAD(one, other)	`other` is hooked only where there is no `one`
 *	OPTIONAL(function)	a kernel without it has nothing that it would do
 */
#define ENTRY(family, fstype, function, ...) static __always_inline int entry__##function(const struct rsyncfs_call *call)
#define AFTER(family, fstype, function, ...) static __always_inline int after__##function(const struct rsyncfs_call *call)
#define GIVEN(type, index) ((type)call->argument[index])
#define INSTEAD(one, other)
#define OPTIONAL(function)

/* Constants that are macros in the kernel, and so not in BTF. Their values hold from 5.15 to 6.18 at least. */
#define RSYNCFS_PF_IO_WORKER 0x00000010
#define RSYNCFS_PF_WQ_WORKER 0x00000020
#define RSYNCFS_PF_DUMPCORE 0x00000200
#define RSYNCFS_PF_USER_WORKER 0x00004000
#define RSYNCFS_PF_LOCAL_THROTTLE 0x00100000
#define RSYNCFS_PF_KTHREAD 0x00200000
#define RSYNCFS_TS_COMPAT 0x0002
/* 6.12 gave them other bits (86aa46a86f9c) and made i_state an unsigned int; enumerators came later */
#define RSYNCFS_I_NEW ENUMERATOR(I_NEW, sizeof(RSYNCFS_TYPE_inode__i_state) == 8 ? 1 << 3 : 1 << 0)
#define RSYNCFS_I_FREEING ENUMERATOR(I_FREEING, sizeof(RSYNCFS_TYPE_inode__i_state) == 8 ? 1 << 5 : 1 << 7)
#define RSYNCFS_EXTENT_LOCKED ENUMERATOR(EXTENT_LOCKED, 1 << 2) /* macros at first, other bits since 6.12 */
#define RSYNCFS_EXTENT_DELALLOC ENUMERATOR(EXTENT_DELALLOC, 1 << 4)
#define RSYNCFS_EXTENT_DEFRAG ENUMERATOR(EXTENT_DEFRAG, 1 << 5)
#define RSYNCFS_IOMAP_WRITE (1 << 0)
#define RSYNCFS_IOMAP_FAULT (1 << 3)
#define RSYNCFS_IOMAP_DIRECT (1 << 4)
#define RSYNCFS_IOMAP_UNSHARE (1 << 7)
#define RSYNCFS_IOMAP_DIO_WRITE (1 << 30)
#define RSYNCFS_EXT4_MOUNT_DATA_FLAGS 0x00C00
#define RSYNCFS_EXT4_MOUNT_JOURNAL_DATA 0x00400
#define RSYNCFS_EXT4_MOUNT_DELALLOC 0x8000000
#define RSYNCFS_EXT4_JOURNAL_DATA_FL 0x00004000
#define RSYNCFS_EXT4_INLINE_DATA_FL 0x10000000

/*
 * The folio that a page is a part of. A tail page has its head's address plus one; since 7.0 that may also be a mask for
 * its own address, whose upper half is all ones, as no page's address is.
 */
static __always_inline void *rsyncfs_folio(void *page)
{
#if HAS_FIELD(page, compound_info)
	u64 head = FIELD(page, compound_info, page);

	if (head & 1 && (u32)(head >> 32) == ~0U)
		return (void *)((u64)page & head);
#else
	u64 head = FIELD(page, compound_head, page);
#endif
	return head & 1 ? (void *)(head - 1) : page;
}

/* Bytes of a folio. Large ones (PG_head) keep their order in the second page's flags, since 6.6. */
static __always_inline u64 rsyncfs_folio_bytes(void *folio)
{
	u64 flags = READ(u64, ADDRESS(folio, flags, folio));
	u32 order = 0;

	if (flags & (1UL << ENUMERATOR(PG_head))) {
#if HAS_FIELD(folio, _folio_order)
		order = FIELD(folio, _folio_order, folio);
#else
		order = FIELD(folio, _flags_1, folio) & 0xff;
#endif
	}
	return (u64)PAGE_SIZE << (order & 31);
}

/* The folio that a buffer belongs to: a single page before 6.4, where this is the same. */
static __always_inline void *rsyncfs_buffer_folio(void *buffer)
{
#if HAS_FIELD(buffer_head, b_folio)
	return FIELD(buffer_head, b_folio, buffer);
#else
	return FIELD(buffer_head, b_page, buffer);
#endif
}

#endif
