/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Stands in for iomap.c on kernels whose direct writes pass no tracepoint (before 6.5): the last thing that
 * the function does which completes them, in every context, is to free their description. After the data, the size and
 * the page cache's last invalidation, as there.
 *
 * An interrupt that frees something while this runs is skipped. That loses nothing: in those kernels a direct write
 * completes in the task that began it or in a worker, never in an interrupt.
 */

/* Where that function's code is; written by the loader. */
struct rsyncfs_code {
	u64 start;
	u64 bytes;
};
BPF_ARRAY(direct_end, struct rsyncfs_code, 1);

HOOK(freed, kfree, long unsigned int, void *)
{
	void *dio = ARGUMENT(void *, 1);
	struct rsyncfs_subject subject;
	struct rsyncfs_code *code;
	u64 position, bytes;
	u32 zero = 0;
	void *iocb;

	code = direct_end.lookup(&zero);
	if (!code || ARGUMENT(u64, 0) - code->start >= code->bytes)
		return 0;
	if (!(FIELD(iomap_dio, flags, dio) & RSYNCFS_IOMAP_DIO_WRITE))
		return 0;
	iocb = FIELD(iomap_dio, iocb, dio);
	if (!rsyncfs_watched(FIELD(file, f_inode, FIELD(kiocb, ki_filp, iocb)), &subject) ||
	    !RSYNCFS_IS_FILE(subject.mode))
		return 0;
	position = FIELD(kiocb, ki_pos, iocb);
	bytes = FIELD(iomap_dio, size, dio); /* that were submitted */
	if (!bytes)
		return 0;
	if (FIELD(iomap_dio, error, dio)) /* a part may have been written, and the position has stayed */
		rsyncfs_emit(&subject, RSYNCFS_WRITE, RSYNCFS_F_BEFORE, position, bytes);
	else
		rsyncfs_emit(&subject, RSYNCFS_WRITE,
			     position > FIELD(inode, i_size, subject.inode) ? RSYNCFS_F_BEFORE : 0, position - bytes,
			     bytes);
	return 0;
}
