/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * The net under the hooks of mappings: every folio of the page cache that turns from clean to dirty.
 *
 * Plain writes pass here too, with the whole folio although the filesystem's hook tells their exact range: what a
 * writing system call dirties is left to that hook. So is what is dirtied while the file has no writable mapping, but
 * for a worker that completes direct reads into pages which were mapped when the read began.
 */

static __always_inline bool stored_through_mapping(u16 mapped)
{
	u32 flags;

	if (mapped)
		return !rsyncfs_call_writes(rsyncfs_call());
	/* a loop device's worker writes like a program does, and is known by its throttle flag */
	flags = rsyncfs_task_flags();
	return (flags & RSYNCFS_PF_KTHREAD) && (flags & RSYNCFS_PF_WQ_WORKER) && !(flags & RSYNCFS_PF_LOCAL_THROTTLE);
}

HOOK(net, writeback_dirty_folio, struct folio *, struct address_space *)
{
	void *folio = ARGUMENT(void *, 0);
	void *mapping = ARGUMENT(void *, 1);
	struct rsyncfs_subject subject;

	if (!mapping || !stored_through_mapping(rsyncfs_mapped(mapping)))
		return 0;
	if (!rsyncfs_watched(FIELD(address_space, host, mapping), &subject) || !RSYNCFS_IS_FILE(subject.mode))
		return 0;
	/* journalled data is marked dirty once more by the journal's threads */
	if (subject.blind && rsyncfs_memoryless())
		return 0;
	rsyncfs_emit(&subject, RSYNCFS_FOLIO, RSYNCFS_F_MAPPED, FIELD(folio, index, folio) * PAGE_SIZE,
		     rsyncfs_folio_bytes(folio));
	return 0;
}
