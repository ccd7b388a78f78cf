/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * How several programs at one place know which of them has told.
 *
 * A trampoline's program can be preempted, and so can a raw tracepoint's on new kernels; the kernel skips a program that
 * is under way already on the same processor, also for another task. So there are two or three for each return and each
 * such tracepoint, and where that has not been enough for a function, a probe behind them, which is never preempted
 * (capture/load.py). Each looks whether one before it has told of this very call: that one leaves a note, by thread. A
 * spare passes it on as its own, and the probe takes it away.
 *
 * If a spare or the probe finds the thread's place without the note of one before it, the first was skipped, which is
 * counted: calls that it was skipped for, less these, are at least those that nobody told of. (After a spare that was
 * skipped an old note may look like this call's; nothing is counted then.)
 *
 * Notes are no use where interrupts come by: one between two of a thread's programs would take its place.
 */
#ifndef RSYNCFS_NOTES_H
#define RSYNCFS_NOTES_H

#define RSYNCFS_NOTES 32768 /* a power of two */
#define RSYNCFS_HOOKS 128
BPF_ARRAY(notes, u64, RSYNCFS_NOTES); /* thread << 32 | hook << 3 | enum rsyncfs_teller */
BPF_PERCPU_ARRAY(spared, u64, RSYNCFS_HOOKS);

enum rsyncfs_teller {
	RSYNCFS_NOBODY = 0,
	RSYNCFS_FIRST = 1,
	RSYNCFS_SPARE = 2,
	RSYNCFS_SPARE_2 = 3,
	RSYNCFS_PROBE = 4,
};

/* The thread's place, and what `teller` writes there. */
static __always_inline u64 *rsyncfs_note(u64 *note, u32 hook, u32 teller)
{
	u32 thread = bpf_get_current_pid_tgid(), place = thread & (RSYNCFS_NOTES - 1);
	u64 *there = notes.lookup(&place);

	*note = (u64)thread << 32 | hook << 3 | teller;
	return there;
}

static __always_inline void rsyncfs_tell_spare(u32 hook)
{
	u64 note, *there = rsyncfs_note(&note, hook, RSYNCFS_FIRST);

	if (there)
		*(volatile u64 *)there = note;
}

/* Whether one before `teller` has told of this call. If not, `teller` is to tell. */
static __always_inline bool rsyncfs_was_told(u32 hook, u32 teller)
{
	u64 none, *there = rsyncfs_note(&none, hook, RSYNCFS_NOBODY), found, *count;

	if (!there)
		return false;
	found = *(volatile u64 *)there;
	*(volatile u64 *)there = teller == RSYNCFS_PROBE ? none : none | teller;
	if (found > none && found < (none | teller))
		return true;
	if (found >> 32 == none >> 32) { /* else another thread has the same place */
		count = spared.lookup(&hook);
		if (count)
			__sync_fetch_and_add(count, 1);
	}
	return false;
}

#endif
