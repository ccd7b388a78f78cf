/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * The maps that all families share, each with one writer. The loader makes `events`, `lost` and `counts` as large as
 * they have to be.
 */
#ifndef RSYNCFS_MAPS_H
#define RSYNCFS_MAPS_H

/* Written by the reader: which superblocks (kernel dev_t) are watched. */
struct rsyncfs_filesystem {
	u8 index; /* the `fs` of the records */
	u8 type;  /* enum rsyncfs_type */
};
BPF_HASH(filesystems, u32, struct rsyncfs_filesystem, 64);

enum rsyncfs_type {
	RSYNCFS_OTHER = 0,
	RSYNCFS_EXT4 = 1,
	RSYNCFS_XFS = 2,
	RSYNCFS_BTRFS = 3,
	RSYNCFS_TMPFS = 4,
};

/* Written by emit.h: the records, and what could not be submitted. */
BPF_RINGBUF_OUTPUT(events, 1);

/*
 * What is counted, a row for each processor. The reader looks at it in its own memory: while bpf(2) reads a map, the
 * kernel runs no programs at probes on that processor.
 */
enum rsyncfs_count {
	RSYNCFS_RING_FULL = 0,	   /* a record did not fit; its inode is in `lost` */
	RSYNCFS_LOST_MAP_FULL = 1, /* nor did its inode: everything must be looked at again */
	RSYNCFS_RETURN_MISSED = 2, /* a function was entered, and its probe saw no return */
	RSYNCFS_UNTOLD = 3,	   /* a write that need not be told (repeat.h) */
	RSYNCFS_COUNTS = 8,
};
struct rsyncfs_counts {
	u64 count[RSYNCFS_COUNTS];
};
#define RSYNCFS_MMAPABLE (1 << 10) /* BPF_F_MMAPABLE */
BPF_F_TABLE("array", u32, struct rsyncfs_counts, counts, 1, RSYNCFS_MMAPABLE);

static __always_inline void rsyncfs_count(u32 what)
{
	u32 processor = bpf_get_smp_processor_id();
	struct rsyncfs_counts *row = counts.lookup(&processor);

	if (row)
		__sync_fetch_and_add(&row->count[what], 1);
}

struct rsyncfs_inode_key {
	u64 root;
	u64 ino;
	u32 gen;
	u32 fs;
};
BPF_HASH(lost, struct rsyncfs_inode_key, u64, 1024);

/*
 * Written by emit.h where RSYNCFS_TRACE is defined: what the processes of the latest records are called, for a reader
 * that comes when they have ended. By tgid.
 */
struct rsyncfs_command {
	u64 name[2];   /* comm of the process's first thread */
	u64 before[2]; /* what this tgid was called before `since`; 0 if it made no record then */
	u64 since;     /* CLOCK_MONOTONIC, ns */
};
#ifdef RSYNCFS_TRACE
BPF_TABLE("lru_hash", u32, struct rsyncfs_command, commands, 16384);
#endif

#endif
