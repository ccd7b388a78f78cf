/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Extended attributes and ACLs. (Mode, owner and times pass notify_change(): vfs_size.c.)
 */

static __always_inline int vfs_changed(void *inode, s64 result)
{
	struct rsyncfs_subject subject;

	if (!result && rsyncfs_watched(inode, &subject))
		rsyncfs_emit(&subject, RSYNCFS_ATTR, 0, 0, 0);
	return 0;
}

AFTER(vfs_attributes, any, __vfs_setxattr_noperm, struct dentry *)
{
	return vfs_changed(FIELD(dentry, d_inode, GIVEN(void *, 0)), (s32)call->result);
}

AFTER(vfs_attributes, any, __vfs_removexattr_locked, struct dentry *)
{
	return vfs_changed(FIELD(dentry, d_inode, GIVEN(void *, 0)), (s32)call->result);
}

/* ACLs have functions of their own since 6.2. */
OPTIONAL(vfs_set_acl)
AFTER(vfs_attributes, any, vfs_set_acl, struct dentry *)
{
	return vfs_changed(FIELD(dentry, d_inode, GIVEN(void *, 0)), (s32)call->result);
}

OPTIONAL(vfs_remove_acl)
AFTER(vfs_attributes, any, vfs_remove_acl, struct dentry *)
{
	return vfs_changed(FIELD(dentry, d_inode, GIVEN(void *, 0)), (s32)call->result);
}

/* nfsd's way to set them before */
INSTEAD(vfs_set_acl, set_posix_acl)
AFTER(vfs_attributes, any, set_posix_acl, struct inode *)
{
	return vfs_changed(GIVEN(void *, 0), (s32)call->result);
}
