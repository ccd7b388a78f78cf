/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Names: told after the change, when a lookup finds what it finds. Files are made by the filesystem's own create, which
 * open(O_CREAT) calls without vfs_create(); all else passes the VFS functions. A file without a name (O_TMPFILE) is told
 * when it is linked.
 */

#define VFS_RENAME_EXCHANGE (1 << 1)

/* What `dentry` is called now, and where. False if that did not fit. */
static __always_inline bool vfs_tell(void *dentry, u16 flags)
{
	void *directory = FIELD(dentry, d_inode, FIELD(dentry, d_parent, dentry));
	void *inode = FIELD(dentry, d_inode, dentry);
	void *name = ADDRESS(dentry, d_name, dentry);
	struct rsyncfs_subject subject, target;

	if (!rsyncfs_watched(directory, &subject))
		return true;
	return rsyncfs_emit_name(&subject, flags, FIELD(qstr, name, name), FIELD(qstr, len, name),
				 inode && rsyncfs_watched(inode, &target) && target.root == subject.root ? &target : 0);
}

static __always_inline int vfs_named(void *dentry)
{
	vfs_tell(dentry, 0);
	return 0;
}

static __always_inline int vfs_made(void *dentry, s64 result)
{
	return result ? 0 : vfs_named(dentry);
}

AFTER(vfs_names, ext4, ext4_create, struct inode *, struct dentry *)
{
	return vfs_made(GIVEN(void *, 1), (s32)call->result);
}

AFTER(vfs_names, xfs, xfs_vn_create, struct inode *, struct dentry *)
{
	return vfs_made(GIVEN(void *, 1), (s32)call->result);
}

AFTER(vfs_names, btrfs, btrfs_create, struct inode *, struct dentry *)
{
	return vfs_made(GIVEN(void *, 1), (s32)call->result);
}

AFTER(vfs_names, tmpfs, shmem_create, struct inode *, struct dentry *)
{
	return vfs_made(GIVEN(void *, 1), (s32)call->result);
}

/* Returns a number, or since 6.15 the directory's dentry, which may be another one than was given. */
AFTER(vfs_names, any, vfs_mkdir, struct inode *, struct dentry *)
{
	if (RETURNS_POINTER_vfs_mkdir)
		return (u64)call->result > -4096ULL ? 0 : vfs_named((void *)call->result);
	return vfs_made(GIVEN(void *, 1), (s32)call->result);
}

AFTER(vfs_names, any, vfs_mknod, struct inode *, struct dentry *)
{
	return vfs_made(GIVEN(void *, 1), (s32)call->result);
}

AFTER(vfs_names, any, vfs_symlink, struct inode *, struct dentry *)
{
	return vfs_made(GIVEN(void *, 1), (s32)call->result);
}

AFTER(vfs_names, any, vfs_link, struct dentry *, struct inode *, struct dentry *)
{
	return vfs_made(GIVEN(void *, 2), (s32)call->result);
}

AFTER(vfs_names, any, vfs_unlink, struct inode *, struct dentry *)
{
	return vfs_made(GIVEN(void *, 1), (s32)call->result);
}

AFTER(vfs_names, any, vfs_rmdir, struct inode *, struct dentry *)
{
	return vfs_made(GIVEN(void *, 1), (s32)call->result);
}

/*
 * The dentries have changed places already. The name that was left is not written anywhere any more: whoever knows the
 * inode knows it (RSYNCFS_F_MOVED), unless the record is lost; then all of the directory must be looked at.
 */
static __always_inline void vfs_moved(void *data)
{
#if HAS_FIELD(renamedata, old_parent)
	void *directory = FIELD(dentry, d_inode, FIELD(renamedata, old_parent, data)); /* since 6.17 */
#else
	void *directory = FIELD(renamedata, old_dir, data);
#endif
	struct rsyncfs_subject left;
	bool watched = rsyncfs_watched(directory, &left);

	if (watched)
		rsyncfs_emit(&left, RSYNCFS_ATTR, 0, 0, 0);
	if (!vfs_tell(FIELD(renamedata, old_dentry, data), RSYNCFS_F_MOVED) && watched)
		rsyncfs_emit_lost(&left);
}

AFTER(vfs_names, any, vfs_rename, struct renamedata *)
{
	void *data = GIVEN(void *, 0);

	if ((s32)call->result)
		return 0;
	if (FIELD(renamedata, flags, data) & VFS_RENAME_EXCHANGE)
		vfs_tell(FIELD(renamedata, new_dentry, data), RSYNCFS_F_MOVED);
	vfs_moved(data);
	return 0;
}

/* Subvolumes and snapshots are made by an ioctl: their root directories are all 256. */
#define VFS_BTRFS_ROOT 256

static __always_inline int vfs_instantiated(void *dentry, void *inode)
{
	if (!inode || FIELD(inode, i_ino, inode) != VFS_BTRFS_ROOT)
		return 0;
	return vfs_named(dentry);
}

AFTER(vfs_names, btrfs, d_instantiate, struct dentry *, struct inode *)
{
	return vfs_instantiated(GIVEN(void *, 0), GIVEN(void *, 1));
}

AFTER(vfs_names, btrfs, d_instantiate_new, struct dentry *, struct inode *)
{
	return vfs_instantiated(GIVEN(void *, 0), GIVEN(void *, 1));
}

AFTER(vfs_names, btrfs, btrfs_delete_subvolume, struct dentry *)
{
	return vfs_made(GIVEN(void *, 0), (s32)call->result);
}
