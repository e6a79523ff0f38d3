#include "mounts.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "calls.h"
#include "disks.h"
#include "paths.h"
#include "setup.h"
#include "share.h"

#define FIELD "mounts"
#define PROC_MAGIC 0x9fa0
#define KNOWN_FLAGS                                                                                                    \
	(MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME | MS_NODIRATIME | MS_RELATIME | MS_STRICTATIME |    \
	 MS_BIND | MS_REC | K_MS_NOSYMFOLLOW)

static const char *const KERNEL_TYPES[] = {"proc", "sysfs", "tmpfs", "mqueue", "devpts", "cgroup2"};

/* ---- the kernel's steps ---------------------------------------------------------------------------------------- */

static uint64_t attributes(uint64_t flags)
{
	uint64_t found = 0;
	found |= flags & MS_RDONLY ? K_MOUNT_ATTR_RDONLY : 0;
	found |= flags & MS_NOSUID ? K_MOUNT_ATTR_NOSUID : 0;
	found |= flags & MS_NODEV ? K_MOUNT_ATTR_NODEV : 0;
	found |= flags & MS_NOEXEC ? K_MOUNT_ATTR_NOEXEC : 0;
	found |= flags & MS_NODIRATIME ? K_MOUNT_ATTR_NODIRATIME : 0;
	found |= flags & K_MS_NOSYMFOLLOW ? K_MOUNT_ATTR_NOSYMFOLLOW : 0;
	if (flags & MS_STRICTATIME)
		return found | K_MOUNT_ATTR_STRICTATIME;
	return found | (flags & MS_NOATIME ? K_MOUNT_ATTR_NOATIME : 0);
}

/* fail_errno, and what the file system itself has to say. */
static int refused(struct err *err, int fs, const char *type)
{
	int error = errno;
	char step[sizeof err->step], word[256];
	ssize_t size = fs < 0 ? -1 : read(fs, word, sizeof word - 1);
	word[size < 0 ? 0 : size] = 0;
	word[strcspn(word, "\n")] = 0;
	snprintf(step, sizeof step, "mount %s", type);
	return fail(err, error, step, "%s%s%s", strerror(error), size > 2 ? ": " : "", size > 2 ? word + 2 : "");
}

static int set_options(int fs, const char *options)
{
	char copy[4096], *state, *word;
	if ((size_t)snprintf(copy, sizeof copy, "%s", options) >= sizeof copy) {
		errno = E2BIG;
		return -1;
	}
	for (word = strtok_r(copy, ",", &state); word; word = strtok_r(NULL, ",", &state)) {
		char *value = strchr(word, '=');
		if (value)
			*value++ = 0;
		if (sys_fsconfig(fs, value ? K_FSCONFIG_SET_STRING : K_FSCONFIG_SET_FLAG, word, value) < 0)
			return -1;
	}
	return 0;
}

int fs_new(const char *type, const char *source, const char *options, uint64_t flags, struct err *err)
{
	int tree = -1, fs = sys_fsopen(type);
	if (fs < 0)
		return refused(err, -1, type);
	if (sys_fsconfig(fs, K_FSCONFIG_SET_STRING, "source", source) < 0 ||
	    (options && set_options(fs, options) < 0) || sys_fsconfig(fs, K_FSCONFIG_CMD_CREATE, NULL, NULL) < 0 ||
	    (tree = sys_fsmount(fs, attributes(flags))) < 0)
		refused(err, fs, type);
	close(fs);
	return tree;
}

int fs_clone(int from, const char *path, struct err *err)
{
	unsigned flags = K_OPEN_TREE_CLONE | K_OPEN_TREE_CLOEXEC | K_AT_RECURSIVE | AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW;
	int tree = sys_open_tree(from, path, flags);
	return tree < 0 ? fail_errno(err, "copy a mount") : tree;
}

static int change(int tree, bool recursive, struct k_mount_attr *attr, struct err *err)
{
	if (sys_mount_setattr(tree, "", AT_EMPTY_PATH | (recursive ? K_AT_RECURSIVE : 0), attr) < 0)
		return fail_errno(err, "change a mount");
	return 0;
}

int fs_restrict(int tree, uint64_t flags, struct err *err)
{
	struct k_mount_attr attr = {.attr_set = attributes(flags)};
	/* The three ways to keep times are one value, of which 0 is one. */
	if (flags & (MS_NOATIME | MS_STRICTATIME | MS_RELATIME))
		attr.attr_clr = K_MOUNT_ATTR__ATIME;
	return change(tree, flags & MS_REC, &attr, err);
}

static int propagate(int tree, uint64_t how, struct err *err)
{
	struct k_mount_attr attr = {.propagation = how & ~(uint64_t)MS_REC};
	return how ? change(tree, how & MS_REC, &attr, err) : 0;
}

static bool same(int one, int other)
{
	struct stat left, right;
	return fstat(one, &left) == 0 && fstat(other, &right) == 0 && left.st_dev == right.st_dev &&
	       left.st_ino == right.st_ino;
}

static int move(int tree, int target, struct err *err)
{
	if (sys_move_mount(tree, "", target, "", K_MOVE_MOUNT_F_EMPTY_PATH | K_MOVE_MOUNT_T_EMPTY_PATH) < 0)
		return fail_errno(err, "move a mount");
	return 0;
}

int fs_attach(int tree, int root, const char *destination, bool directory, struct err *err)
{
	int result = -1, target = path_open(root, destination, directory ? PATH_DIRECTORY : PATH_FILE);
	if (target < 0)
		fail(err, errno, "make a mount's place", "%s: %s", destination, strerror(errno));
	else if (same(target, root))
		fail(err, EINVAL, "make a mount's place", "%s is the container's root", destination);
	else if (sys_move_mount(tree, "", target, "", K_MOVE_MOUNT_F_EMPTY_PATH | K_MOVE_MOUNT_T_EMPTY_PATH) < 0)
		fail(err, errno, "mount", "%s: %s", destination, strerror(errno));
	else
		result = 0;
	if (target >= 0)
		close(target);
	close(tree);
	return result;
}

/* ---- kinds ----------------------------------------------------------------------------------------------------- */

/* Each gives a tree that is not attached yet, and says whether its root is a directory. */
struct maker {
	const struct fields *mount;
	uint64_t flags;
	unsigned number;
	bool directory;
};

static int no_source(const struct maker *maker, struct err *err)
{
	return fail(err, EINVAL, "read a mount", "%s has no source of its kind",
		    fields_text(maker->mount, T_DESTINATION, ""));
}

/* A copy of the mount at what is open; closes it. */
static int take(struct maker *maker, int fd, struct err *err)
{
	struct stat found;
	if (fd < 0 || fstat(fd, &found) < 0) {
		fail_errno(err, "open a mount's source");
		if (fd >= 0)
			close(fd);
		return -1;
	}
	maker->directory = S_ISDIR(found.st_mode);
	int tree = fs_clone(fd, "", err);
	close(fd);
	return tree;
}

/* Whether it is a path below something, and not that itself: the host is asked for no other. */
static bool below(const char *path)
{
	size_t parts = 0, size;
	for (const char *at = path + strspn(path, "/"); *at; at += size, at += strspn(at, "/"), parts++) {
		size = strcspn(at, "/");
		if ((size == 1 && at[0] == '.') || (size == 2 && at[0] == '.' && at[1] == '.'))
			return false;
	}
	return parts;
}

static int of_share(struct maker *maker, struct err *err)
{
	const char *source = fields_text(maker->mount, T_SOURCE, "");
	if (!below(source))
		return no_source(maker, err);
	source += strspn(source, "/");
	int share = open(SHARE_POINT, O_PATH | O_DIRECTORY | O_CLOEXEC);
	int fd = share < 0 ? -1 : path_open_plain(share, source, O_PATH);
	int error = errno;
	if (share >= 0)
		close(share);
	errno = error;
	return take(maker, fd, err);
}

static int of_kernel(struct maker *maker, struct err *err)
{
	const char *type = fields_text(maker->mount, T_SOURCE, "");
	for (size_t index = 0; index < sizeof KERNEL_TYPES / sizeof *KERNEL_TYPES; index++)
		if (strcmp(type, KERNEL_TYPES[index]) == 0)
			return fs_new(type, type, fields_text(maker->mount, T_OPTIONS, NULL), maker->flags, err);
	return no_source(maker, err);
}

static int of_content(struct maker *maker, struct err *err)
{
	char path[64];
	struct field content = {.size = 0};
	snprintf(path, sizeof path, STAGE "/file%u", maker->number);
	fields_find(maker->mount, T_CONTENT, &content);
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return fail_errno(err, "make a file");
	ssize_t written = content.size ? write(fd, content.data, content.size) : 0;
	if (written != (ssize_t)content.size || fchmod(fd, (mode_t)fields_u64(maker->mount, T_MODE, 0644)) < 0) {
		fail(err, written < 0 ? errno : ENOSPC, "write a file", "%u bytes", content.size);
		close(fd);
		return -1;
	}
	close(fd);
	maker->directory = false;
	return fs_clone(AT_FDCWD, path, err);
}

static int of_pod(struct maker *maker, struct err *err)
{
	/* It was made before the container's own mount namespace was. */
	const char *name = fields_text(maker->mount, T_SOURCE, "");
	int directories = open(POD_DIRECTORIES, O_PATH | O_DIRECTORY | O_CLOEXEC);
	int fd = directories < 0 || !*name ? -1 : path_open_plain(directories, name, O_PATH | O_DIRECTORY);
	int error = errno;
	if (directories >= 0)
		close(directories);
	errno = error;
	return take(maker, fd, err);
}

static int of_image(struct maker *maker, struct err *err)
{
	char place[64];
	struct disk disk;
	if (!fields_has(maker->mount, T_LUN))
		return no_source(maker, err);
	if (disk_find((unsigned)fields_u64(maker->mount, T_LUN, 0), &disk, err) < 0)
		return -1;
	snprintf(place, sizeof place, STAGE "/image%u", maker->number);
	if (mkdir(place, 0755) < 0)
		return fail_errno(err, "mkdir an image's place");
	if (mount(disk.path, place, "erofs", MS_RDONLY | MS_NODEV | MS_NOSUID, NULL) < 0)
		return fail_errno(err, "mount an image");
	int image = open(place, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (image < 0)
		return fail_errno(err, "open an image");
	int fd = path_open(image, fields_text(maker->mount, T_SOURCE, "/"), PATH_ANY);
	int error = errno;
	close(image);
	errno = error;
	maker->flags |= MS_RDONLY;
	return take(maker, fd, err);
}

static int make_tree(struct maker *maker, struct err *err)
{
	switch (fields_u64(maker->mount, T_MOUNT_KIND, UINT64_MAX)) {
	case MOUNT_SHARE:
		return of_share(maker, err);
	case MOUNT_KERNEL:
		return of_kernel(maker, err);
	case MOUNT_FILE:
		return of_content(maker, err);
	case MOUNT_POD:
		return of_pod(maker, err);
	case MOUNT_SHM:
		return fs_clone(AT_FDCWD, POD_SHM, err);
	case MOUNT_IMAGE:
		return of_image(maker, err);
	}
	return fail(err, EINVAL, "read a mount", "its kind is none");
}

static int one(const struct fields *mount, unsigned number, int root, struct err *err)
{
	const char *destination = fields_text(mount, T_DESTINATION, "");
	uint64_t propagation = fields_u64(mount, T_PROPAGATION, 0), how = propagation & ~(uint64_t)MS_REC;
	uint64_t flags = fields_u64(mount, T_FLAGS, 0);
	struct maker maker = {.mount = mount, .flags = flags, .number = number, .directory = true};
	if (flags & ~(uint64_t)KNOWN_FLAGS)
		return fail(err, EINVAL, "read a mount", "%s: flags %#llx", destination, (unsigned long long)flags);
	if (propagation && how != MS_PRIVATE && how != MS_SLAVE)
		return fail(err, EINVAL, "read a mount", "%s: propagation %#llx", destination,
			    (unsigned long long)propagation);
	int tree = make_tree(&maker, err);
	if (tree < 0)
		return -1;
	if (fs_restrict(tree, maker.flags, err) < 0 || propagate(tree, propagation, err) < 0) {
		close(tree);
		return -1;
	}
	return fs_attach(tree, root, destination, maker.directory, err);
}

int mounts_make(const struct fields *request, int root, struct err *err)
{
	struct fields it = *request;
	struct field each;
	unsigned number = 0;
	while (fields_each(&it, T_MOUNT, &each)) {
		struct fields mount = field_group(&each);
		char field[sizeof err->field], why[sizeof err->message];
		if (one(&mount, number++, root, err) == 0)
			continue;
		const char *destination = fields_text(&mount, T_DESTINATION, "");
		if (!strstr(err->message, destination)) {
			snprintf(why, sizeof why, "%.200s: %.300s", destination, err->message);
			memcpy(err->message, why, sizeof why);
		}
		snprintf(field, sizeof field, FIELD "[%u]", number - 1);
		return fail_field(err, field);
	}
	return 0;
}

bool mounts_have(const struct fields *request, const char *destination)
{
	struct fields it = *request;
	struct field each;
	while (fields_each(&it, T_MOUNT, &each)) {
		struct fields mount = field_group(&each);
		if (strcmp(fields_text(&mount, T_DESTINATION, ""), destination) == 0)
			return true;
	}
	return false;
}

/* ---- what is hidden -------------------------------------------------------------------------------------------- */

/* Opens what there is; -1 and *missing where there is nothing. */
static int existing(int root, const char *path, bool *missing, struct err *err)
{
	int fd = path_open(root, path, PATH_ANY);
	*missing = fd < 0 && (errno == ENOENT || errno == ENOTDIR);
	return fd < 0 && !*missing ? fail(err, errno, "open", "%s: %s", path, strerror(errno)) : fd;
}

static int cover(int target, int tree, struct err *err)
{
	int result = tree < 0 ? -1 : move(tree, target, err);
	if (tree >= 0)
		close(tree);
	return result;
}

static int set_boot_id(int root, struct err *err)
{
	bool missing;
	struct statfs found;
	int result = 0, target = existing(root, "/proc/sys/kernel/random/boot_id", &missing, err);
	if (target < 0)
		return missing ? 0 : -1;
	if (fstatfs(target, &found) == 0 && found.f_type == PROC_MAGIC) {
		int tree = fs_clone(AT_FDCWD, POD_BOOT_ID, err);
		if (tree >= 0 && fs_restrict(tree, MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, err) < 0) {
			close(tree);
			tree = -1;
		}
		result = cover(target, tree, err);
	}
	close(target);
	return result;
}

static int mask(int root, const char *path, struct err *err)
{
	bool missing;
	struct stat found;
	int target = existing(root, path, &missing, err);
	if (target < 0)
		return missing ? 0 : -1;
	bool directory = fstat(target, &found) == 0 && S_ISDIR(found.st_mode);
	int tree = directory ? fs_new("tmpfs", "tmpfs", "size=4k,nr_inodes=1,mode=555", MS_RDONLY, err)
			     : fs_clone(AT_FDCWD, "/dev/null", err);
	int result = cover(target, tree, err);
	close(target);
	return result;
}

static int make_readonly(int root, const char *path, struct err *err)
{
	bool missing;
	int target = existing(root, path, &missing, err);
	if (target < 0)
		return missing ? 0 : -1;
	int tree = fs_clone(target, "", err);
	if (tree >= 0 && fs_restrict(tree, MS_RDONLY | MS_REC, err) < 0) {
		close(tree);
		tree = -1;
	}
	int result = cover(target, tree, err);
	close(target);
	return result;
}

int mounts_hide(const struct fields *request, int root, struct err *err)
{
	struct fields it;
	struct field each;
	if (set_boot_id(root, err) < 0)
		return -1;
	for (it = *request; fields_each(&it, T_MASKED, &each);)
		if (mask(root, field_text(&each), err) < 0)
			return fail_field(err, "linux.security_context.masked_paths");
	for (it = *request; fields_each(&it, T_READONLY_PATH, &each);)
		if (make_readonly(root, field_text(&each), err) < 0)
			return fail_field(err, "linux.security_context.readonly_paths");
	return 0;
}
