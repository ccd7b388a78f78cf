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
 * A spare or a probe that finds no note of one before it tells, and counts that: the first was skipped. Calls that the
 * first was skipped for, less these, are those that nobody told of. (One of them may be told by nobody though a spare
 * ran: where all spares were skipped for the call before, its note looks like this call's.)
 *
 * Notes are no use where interrupts come by: one between two of a thread's programs would take its place.
 */
#ifndef RSYNCFS_NOTES_H
#define RSYNCFS_NOTES_H

/*
 * Each thread has a place of its own, or else one could not tell an old note of a thread that is gone from a new one
 * that somebody else wrote over: as many as the kernel has ids of threads (PID_MAX_LIMIT). Threads of one process are
 * kept apart, so that they do not share cache lines.
 */
#define RSYNCFS_THREADS (4 * 1024 * 1024)
#define RSYNCFS_APART 0x9e375 /* odd, so that every id gets another place */
#define RSYNCFS_PLACES 32
struct rsyncfs_places {
	u16 note[RSYNCFS_PLACES]; /* hook << 3 | enum rsyncfs_teller */
};
BPF_ARRAY(notes, struct rsyncfs_places, RSYNCFS_THREADS / RSYNCFS_PLACES);

/* A row for each processor, read like `counts` of maps.h. */
#define RSYNCFS_HOOKS 128
struct rsyncfs_spared {
	u64 count[RSYNCFS_HOOKS];
};
BPF_F_TABLE("array", u32, struct rsyncfs_spared, spared, 1, RSYNCFS_MMAPABLE);

enum rsyncfs_teller {
	RSYNCFS_NOBODY = 0,
	RSYNCFS_FIRST = 1,
	RSYNCFS_SPARE = 2,
	RSYNCFS_SPARE_2 = 3,
	RSYNCFS_PROBE = 4,
};

static __always_inline volatile u16 *rsyncfs_note(void)
{
	u32 place = (u32)bpf_get_current_pid_tgid() * RSYNCFS_APART & (RSYNCFS_THREADS - 1);
	u32 group = place / RSYNCFS_PLACES;
	struct rsyncfs_places *there = notes.lookup(&group);

	return there ? &there->note[place % RSYNCFS_PLACES] : 0;
}

static __always_inline void rsyncfs_count_spared(u32 hook)
{
	u32 processor = bpf_get_smp_processor_id();
	struct rsyncfs_spared *row = spared.lookup(&processor);

	if (row && hook < RSYNCFS_HOOKS)
		__sync_fetch_and_add(&row->count[hook], 1);
}

static __always_inline void rsyncfs_tell_spare(u32 hook)
{
	volatile u16 *note = rsyncfs_note();

	if (note)
		*note = hook << 3 | RSYNCFS_FIRST;
}

/* Whether one before `teller` has told of this call. If not, `teller` is to tell. */
static __always_inline bool rsyncfs_was_told(u32 hook, u32 teller)
{
	volatile u16 *note = rsyncfs_note();
	u16 none = hook << 3 | RSYNCFS_NOBODY, found;

	if (!note)
		return false;
	found = *note;
	*note = teller == RSYNCFS_PROBE ? none : none | teller;
	if (found > none && found < (none | teller))
		return true;
	rsyncfs_count_spared(hook);
	return false;
}

#endif
