/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Writes to a place that the reader knows of already, and has not read yet, need not be told. docs/suppression.md has
 * the rules and why they suffice; simpler ones lose writes.
 *
 * Each processor remembers, for each page of some inodes, the last range that was told. The second write of the same
 * range is told with the reader's epoch; further ones are not, as long as the epoch is the same. Only what is complete
 * counts: data that was there before the hook, below i_size.
 */
#ifndef RSYNCFS_REPEAT_H
#define RSYNCFS_REPEAT_H

#define RSYNCFS_TOLD 1024 /* a power of two */

/*
 * Written by the reader, in its own memory, for bpf(2) does not promise to copy eight bytes at once: 0 while it does not
 * ask for less.
 */
BPF_F_TABLE("array", u32, u64, epoch, 1, RSYNCFS_MMAPABLE);

struct rsyncfs_told {
	u64 ino;
	u64 root;
	u64 start;
	u64 end;
	u64 epoch; /* of the record that covers the range; 0 while there is none that counts */
	u32 gen;
	u32 busy;
	u16 flags;
	u8 fs;
};
BPF_PERCPU_ARRAY(told, struct rsyncfs_told, RSYNCFS_TOLD);

/* What is known of a write before it is told. */
struct rsyncfs_repeat {
	struct rsyncfs_told *told; /* this processor's; 0 if it is of no use */
	u64 epoch;		   /* what the record is to carry if the write is told; 0 if it is no repeat */
};

static __always_inline bool rsyncfs_same_inode(const struct rsyncfs_told *told, const struct rsyncfs_subject *subject)
{
	return told->ino == subject->ino && told->gen == subject->gen && told->root == subject->root &&
	       told->fs == subject->fs;
}

static __always_inline bool rsyncfs_complete(const struct rsyncfs_subject *subject, u16 flags, u64 off, u64 len)
{
	u64 end = off + len;

	if (flags & (RSYNCFS_F_BEFORE | RSYNCFS_F_HOLES))
		return false;
	/* a fault on btrfs is taken for a write where the call that led to it is not known: the store is still to come */
	if (subject->type == RSYNCFS_BTRFS && subject->flags & RSYNCFS_F_MAPPED)
		return false;
	/* "to the end" wraps */
	return end >= off && end <= FIELD(inode, i_size, subject->inode);
}

/*
 * Begin to tell of a write: false if it need not be told. Between this and rsyncfs_repeat_end() the processor's note is
 * taken; who comes in between (an interrupt, a task that preempted this one) does without.
 */
static __always_inline bool rsyncfs_repeat_begin(struct rsyncfs_repeat *repeat, const struct rsyncfs_subject *subject,
						 u16 flags, u64 off, u64 len)
{
	u32 zero = 0;
	u64 *now = epoch.lookup(&zero);
	u32 place = ((u32)subject->ino * 2654435761U ^ (u32)(off >> 12)) & (RSYNCFS_TOLD - 1);
	struct rsyncfs_told *note;
	bool covered;

	repeat->told = 0;
	repeat->epoch = 0;
	if (!now || !*(volatile u64 *)now || !rsyncfs_complete(subject, flags, off, len))
		return true;
	note = told.lookup(&place);
	if (!note)
		return true;
	/* also the barrier between the data that was written and the epoch (on x86; elsewhere the reader's suffices) */
	__sync_fetch_and_add(&note->busy, 1);
	if (*(volatile u32 *)&note->busy != 1) {
		__sync_fetch_and_add(&note->busy, -1);
		return true;
	}
	repeat->told = note;
	covered = rsyncfs_same_inode(note, subject) && note->flags == subject->flags && note->start <= off &&
		  off + len <= note->end;
	if (!covered)
		return true;
	repeat->epoch = *(volatile u64 *)now;
	if (note->epoch != repeat->epoch)
		return true;
	__sync_fetch_and_add(&note->busy, -1);
	rsyncfs_count(RSYNCFS_UNTOLD);
	return false;
}

/* The record was submitted, or could not be. */
static __always_inline void rsyncfs_repeat_end(const struct rsyncfs_repeat *repeat, const struct rsyncfs_subject *subject,
					       u64 off, u64 len, bool submitted)
{
	struct rsyncfs_told *note = repeat->told;

	if (!note)
		return;
	note->epoch = submitted ? repeat->epoch : 0;
	note->ino = subject->ino;
	note->root = subject->root;
	note->gen = subject->gen;
	note->fs = subject->fs;
	note->flags = subject->flags;
	note->start = off;
	note->end = off + len;
	__sync_fetch_and_add(&note->busy, -1);
}

#endif
