/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * The only submit path. A record that cannot be submitted marks its inode in `lost` first and is counted then: who
 * sees the count finds the inode. Nothing else writes to the ring, so that its records have one stride.
 */
#ifndef RSYNCFS_EMIT_H
#define RSYNCFS_EMIT_H

static __always_inline void rsyncfs_emit_lost(const struct rsyncfs_subject *subject)
{
	struct rsyncfs_inode_key key = {};
	u64 now = bpf_ktime_get_ns();

	key.root = subject->root;
	key.ino = subject->ino;
	key.gen = subject->gen;
	key.fs = subject->fs;
	if (lost.update(&key, &now))
		rsyncfs_count(RSYNCFS_LOST_MAP_FULL);
	rsyncfs_count(RSYNCFS_RING_FULL);
}

#ifdef RSYNCFS_TRACE
/* The current process's. The first thread's name counts; those that io_uring makes have their own. */
static __always_inline void rsyncfs_note_command(void)
{
	u32 pid = bpf_get_current_pid_tgid() >> 32;
	void *leader = FIELD(task_struct, group_leader, (void *)bpf_get_current_task());
	struct rsyncfs_command *known = commands.lookup(&pid);
	struct rsyncfs_command now = {};

	bpf_probe_read_kernel(now.name, sizeof(now.name), ADDRESS(task_struct, comm, leader));
	if (known) {
		if (known->name[0] == now.name[0] && known->name[1] == now.name[1])
			return;
		now.before[0] = known->name[0];
		now.before[1] = known->name[1];
	}
	now.since = bpf_ktime_get_ns();
	commands.update(&pid, &now);
}
#endif

static __always_inline void rsyncfs_fill(struct rsyncfs_event *event, const struct rsyncfs_subject *subject, u8 kind,
					 u16 flags, u64 off, u64 len)
{
	event->ts = bpf_ktime_get_ns();
	event->ino = subject->ino;
	event->off = off;
	event->len = len;
	event->root = subject->root;
	event->cgroup = subject->pid ? subject->cgroup : bpf_get_current_cgroup_id();
	event->gen = subject->gen;
	event->pid = subject->pid ? subject->pid : bpf_get_current_pid_tgid() >> 32;
	event->kind = kind;
	event->fs = subject->fs;
	event->flags = subject->flags | flags;
	event->epoch = 0;
}

/* A record with the reader's epoch, if that is to be told; false if it did not fit. `flags` as for rsyncfs_emit(). */
static __always_inline bool rsyncfs_submit(const struct rsyncfs_subject *subject, u8 kind, u16 flags, u64 off, u64 len,
					   u64 epoch)
{
	struct rsyncfs_event *event;

#ifdef RSYNCFS_TRACE
	/* what is not shown takes no room from what is, and every record that is lost is a line that is */
	if (kind == RSYNCFS_ATTR)
		return true;
	if (!subject->pid)
		rsyncfs_note_command();
#endif
	event = events.ringbuf_reserve(sizeof(struct rsyncfs_event));
	if (!event) {
		rsyncfs_emit_lost(subject);
		return false;
	}
	rsyncfs_fill(event, subject, kind, flags, off, len);
	event->epoch = epoch;
	events.ringbuf_submit(event, 0);
	return true;
}

/* `flags` are RSYNCFS_F_HOLES and RSYNCFS_F_BEFORE; RSYNCFS_F_MAPPED comes with the subject. */
static __always_inline void rsyncfs_emit(const struct rsyncfs_subject *subject, u8 kind, u16 flags, u64 off, u64 len)
{
	struct rsyncfs_repeat repeat = {};
	bool submitted;

	if (kind == RSYNCFS_WRITE && !rsyncfs_repeat_begin(&repeat, subject, flags, off, len))
		return;
	submitted = rsyncfs_submit(subject, kind, flags, off, len, repeat.epoch);
	rsyncfs_repeat_end(&repeat, subject, off, len, submitted);
}

/*
 * A name in the directory `subject`; `target` is the inode that it means now, or 0. A name that cannot be read is told
 * as "any". False if it did not fit.
 */
static __always_inline bool rsyncfs_emit_name(const struct rsyncfs_subject *subject, u16 flags, const void *name,
					      u32 length, const struct rsyncfs_subject *target)
{
	u64 ino = target ? target->ino : 0, len = target ? target->gen : 0;
	struct rsyncfs_short_name *little;
	struct rsyncfs_long_name *large;

	if (length < RSYNCFS_SHORT_NAME) {
		little = events.ringbuf_reserve(sizeof(struct rsyncfs_short_name));
		if (!little) {
			rsyncfs_emit_lost(subject);
			return false;
		}
		if (bpf_probe_read_kernel_str(little->name, RSYNCFS_SHORT_NAME, name) != length + 1)
			length = 0;
		rsyncfs_fill(&little->event, subject, RSYNCFS_NAME, flags, ino, len | (u64)length << 32);
		events.ringbuf_submit(little, 0);
		return true;
	}
	large = events.ringbuf_reserve(sizeof(struct rsyncfs_long_name));
	if (!large) {
		rsyncfs_emit_lost(subject);
		return false;
	}
	if (bpf_probe_read_kernel_str(large->name, RSYNCFS_LONG_NAME, name) != length + 1)
		length = 0;
	rsyncfs_fill(&large->event, subject, RSYNCFS_NAME, flags, ino, len | (u64)length << 32);
	events.ringbuf_submit(large, 0);
	return true;
}

#endif
