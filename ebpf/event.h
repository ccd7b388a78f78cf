/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * The one record layout. replicator/capture/event.py holds the same as a numpy dtype; a test compares the two.
 * 64 bytes, so that a ring of records (8-byte header each) has a constant stride of 72. A record that tells a name has
 * the name behind it, in room for one more record or for four, so that the stride stays what it is.
 */
#ifndef RSYNCFS_EVENT_H
#define RSYNCFS_EVENT_H

enum rsyncfs_kind {
	RSYNCFS_WRITE = 1, /* bytes [off, off + len) were written */
	RSYNCFS_FOLIO = 2, /* the folio [off, off + len) of a mapping was dirtied: some of its bytes, perhaps one */
	RSYNCFS_SIZE = 3,  /* the size was set, and is or becomes off */
	RSYNCFS_TAIL = 4,  /* everything from off on moved (collapse, insert) */
	RSYNCFS_ATTR = 5,  /* attributes changed; bytes did not */
	RSYNCFS_WHOLE = 6, /* bytes changed, it is not known which */
	RSYNCFS_NAME = 7,  /* a name in this directory means something else: its length is len >> 32, 0 is "any" */
};

#define RSYNCFS_F_MAPPED (1 << 0) /* the file has writable shared mappings: flush them before any read */
#define RSYNCFS_F_HOLES (1 << 1)  /* the range may have become a hole, or stopped being one */
#define RSYNCFS_F_BEFORE (1 << 2) /* submitted before the effect was complete, under the inode's lock */
#define RSYNCFS_F_MOVED (1 << 3)  /* the inode that got the name (off, generation in the low half of len) had another */

struct rsyncfs_event {
	__u64 ts;     /* CLOCK_MONOTONIC, ns */
	__u64 ino;
	__u64 off;    /* bytes */
	__u64 len;    /* bytes; ~0 is "to the end" */
	__u64 root;   /* btrfs: objectid of the subvolume's root; elsewhere 0 */
	__u64 cgroup; /* cgroup v2 id of the writer */
	__u32 gen;    /* inode->i_generation */
	__u32 pid;    /* tgid of the writer */
	__u8 kind;    /* enum rsyncfs_kind */
	__u8 fs;      /* index of the filesystem, as given to the filter map */
	__u16 flags;  /* RSYNCFS_F_* */
	__u32 epoch;  /* the low half of the reader's epoch, if repeats of this write are not told; else 0 */
};

#define RSYNCFS_SHORT_NAME 72 /* bytes behind the record, one stride */
#define RSYNCFS_LONG_NAME 288 /* four */

struct rsyncfs_short_name {
	struct rsyncfs_event event;
	char name[RSYNCFS_SHORT_NAME];
};

struct rsyncfs_long_name {
	struct rsyncfs_event event;
	char name[RSYNCFS_LONG_NAME];
};

#endif
