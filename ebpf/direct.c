/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * The second of two programs at the end of direct writes; the first is in iomap.c.
 *
 * These ends also come in interrupts, and the kernel skips a program that is running already on the same processor.
 * Of two programs that run one after the other an interrupt meets only one: the other sees its write.
 */

HOOK(direct, iomap_dio_complete, struct kiocb *, int, ssize_t)
{
	return direct_write_done(ctx);
}
