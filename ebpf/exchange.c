/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * XFS_IOC_EXCHANGE_RANGE of XFS, and its tracepoint, came with 6.10: where the one is missing, so is the other.
 */

HOOK(exchange, xfs_exchrange_before, struct xfs_inode *, int)
{
	return xfs_exchanged(ARGUMENT(void *, 0));
}
