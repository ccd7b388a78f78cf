/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Whose event is it: takes a struct inode, says whether its filesystem is watched, and collects the identity that
 * every record carries. Costs a process on other filesystems two reads and one failed lookup.
 */
#ifndef RSYNCFS_FILTER_H
#define RSYNCFS_FILTER_H

struct rsyncfs_subject {
	void *inode; /* struct inode */
	u64 ino;
	u64 root;
	u32 gen;
	u16 mode;
	u16 flags; /* RSYNCFS_F_MAPPED or 0 */
	u8 fs;
	u8 type;   /* enum rsyncfs_type */
	bool blind; /* no hook sees stores through a mapping into a page that is dirty already */
	u32 pid;    /* who writes, if that is not the current process (then 0) */
	u64 cgroup; /* the same */
};

#define RSYNCFS_IS_FILE(mode) (((mode)&0170000) == 0100000)

static __always_inline u16 rsyncfs_mapped(void *mapping)
{
	/* atomic_t: below zero when writable mappings are denied (sealed memfd) */
	s32 writable = mapping ? FIELD(atomic_t, counter, ADDRESS(address_space, i_mmap_writable, mapping)) : 0;

	return writable > 0 ? RSYNCFS_F_MAPPED : 0;
}

#if HAS_FIELD(ext4_inode_info, vfs_inode) && HAS_FIELD(ext4_sb_info, s_mount_opt)
/* Without delayed allocation, or with journalled data, ext4 lets a mapping write to a dirty page without a word. */
static __always_inline bool rsyncfs_ext4_blind(void *inode, void *sb)
{
	u32 options = FIELD(ext4_sb_info, s_mount_opt, FIELD(super_block, s_fs_info, sb));
	u64 own = FIELD(ext4_inode_info, i_flags, CONTAINER(ext4_inode_info, vfs_inode, inode));

	return !(options & RSYNCFS_EXT4_MOUNT_DELALLOC) ||
	       (options & RSYNCFS_EXT4_MOUNT_DATA_FLAGS) == RSYNCFS_EXT4_MOUNT_JOURNAL_DATA ||
	       own & RSYNCFS_EXT4_JOURNAL_DATA_FL;
}
#endif

/* True if `inode` lies on a watched filesystem; fills `subject`. */
static __always_inline bool rsyncfs_watched(void *inode, struct rsyncfs_subject *subject)
{
	struct rsyncfs_filesystem *filesystem;
	void *sb;
	u32 dev;

	if (!inode)
		return false;
	sb = FIELD(inode, i_sb, inode);
	dev = FIELD(super_block, s_dev, sb);
	filesystem = filesystems.lookup(&dev);
	if (!filesystem)
		return false;
	subject->inode = inode;
	subject->fs = filesystem->index;
	subject->type = filesystem->type;
	subject->ino = FIELD(inode, i_ino, inode);
	subject->gen = FIELD(inode, i_generation, inode);
	subject->mode = FIELD(inode, i_mode, inode);
	subject->root = 0;
	subject->flags = rsyncfs_mapped(FIELD(inode, i_mapping, inode));
	subject->blind = false;
	subject->pid = 0;
#if HAS_FIELD(ext4_inode_info, vfs_inode) && HAS_FIELD(ext4_sb_info, s_mount_opt)
	if (subject->type == RSYNCFS_EXT4 && rsyncfs_ext4_blind(inode, sb)) {
		/* so that every look begins with a flush, and the next store faults again */
		subject->flags = RSYNCFS_F_MAPPED;
		subject->blind = true;
	}
#endif
/* a module's types are known when its filesystem is watched: then all of these */
#if HAS_FIELD(btrfs_inode, vfs_inode) || HAS_FIELD(btrfs_root, root_key) || HAS_FIELD(btrfs_key, objectid)
	/* inode numbers repeat in every subvolume */
	if (subject->type == RSYNCFS_BTRFS) {
		void *root = FIELD(btrfs_inode, root, CONTAINER(btrfs_inode, vfs_inode, inode));

		subject->root = FIELD(btrfs_key, objectid, ADDRESS(btrfs_root, root_key, root));
	}
#endif
	return true;
}

/* The same, for regular files of one type of filesystem. */
static __always_inline bool rsyncfs_watched_file(void *inode, u8 type, struct rsyncfs_subject *subject)
{
	return rsyncfs_watched(inode, subject) && subject->type == type && RSYNCFS_IS_FILE(subject->mode);
}

#endif
