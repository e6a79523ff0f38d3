#include "rootfs.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "calls.h"
#include "disks.h"
#include "mounts.h"

#define FIELD "rootfs"
#define LOWER STAGE "/lower"
#define LAYER STAGE "/layer"
#define UPPER LAYER "/upper"
#define WORK LAYER "/work"
#define ROOT STAGE "/root"

/* What a root without a layer to write to needs for the places of its mounts. */
#define PLACES_SIZE (1024 * 1024ull)

static const char *const TYPES[] = {"erofs", "ext4", "squashfs"};

static int mount_disk(uint64_t lun, const char *type, const char *place, unsigned long flags, struct err *err)
{
	struct disk disk;
	if (disk_find((unsigned)lun, &disk, err) < 0)
		return fail_field(err, FIELD);
	if (mount(disk.path, place, type, flags, NULL) < 0) {
		fail(err, errno, "mount the root's disk", "%s as %s: %s", disk.path, type, strerror(errno));
		return fail_field(err, FIELD);
	}
	return 0;
}

static int mount_image(const struct fields *rootfs, struct err *err)
{
	const char *type = fields_text(rootfs, T_FSTYPE, "");
	for (size_t index = 0; index < sizeof TYPES / sizeof *TYPES; index++)
		if (strcmp(type, TYPES[index]) == 0)
			return mount_disk(fields_u64(rootfs, T_LUN, 0), type, LOWER, MS_RDONLY, err);
	fail(err, EINVAL, "mount the root's disk", "there are no images of type %s", type);
	return fail_field(err, FIELD);
}

static int mount_layer(const struct fields *rootfs, struct err *err)
{
	char options[96];
	uint64_t size = fields_u64(rootfs, T_UPPER_SIZE, 0);
	if (fields_has(rootfs, T_UPPER_LUN))
		return mount_disk(fields_u64(rootfs, T_UPPER_LUN, 0), "ext4", LAYER, 0, err);
	if (!size && !fields_bool(rootfs, T_READONLY)) {
		fail(err, EINVAL, "mount the layer", "it has neither a size nor a disk");
		return fail_field(err, FIELD);
	}
	if (!size)
		size = PLACES_SIZE;
	/* A file with something in it has a page: more inodes are those of empty files, directories and links. */
	snprintf(options, sizeof options, "mode=755,size=%llu,nr_inodes=%llu", (unsigned long long)size,
		 (unsigned long long)(size / 2048 + 1024));
	if (mount("layer", LAYER, "tmpfs", 0, options) < 0)
		return fail_errno(err, "mount the layer");
	return 0;
}

/* The root of both is the layer's, so it has to be as the image's is. */
static int make_layer(struct err *err)
{
	struct stat image;
	if (stat(LOWER, &image) < 0 || (mkdir(UPPER, 0755) < 0 && errno != EEXIST) ||
	    (mkdir(WORK, 0755) < 0 && errno != EEXIST) || chown(UPPER, image.st_uid, image.st_gid) < 0 ||
	    chmod(UPPER, image.st_mode & 07777) < 0)
		return fail_errno(err, "make the layer");
	return 0;
}

static int mount_both(struct err *err)
{
	/* Nothing of it outlives the machine: what it writes need not be on the disk before its end. */
	static const char options[] = "lowerdir=" LOWER ",upperdir=" UPPER ",workdir=" WORK ",volatile";
	if (mount("overlay", ROOT, "overlay", 0, options) < 0)
		return fail_errno(err, "mount the root");
	return 0;
}

static int make_stage(struct err *err)
{
	static const char *const places[] = {LOWER, LAYER, ROOT};
	/* The agent's own mounts are to see nothing of it. */
	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		return fail_errno(err, "make mounts private");
	if ((mkdir(STAGE, 0700) < 0 && errno != EEXIST) || mount("stage", STAGE, "tmpfs", 0, "mode=700") < 0)
		return fail_errno(err, "mount the stage");
	for (size_t index = 0; index < sizeof places / sizeof *places; index++)
		if (mkdir(places[index], 0700) < 0)
			return fail_errno(err, "mkdir the stage");
	return 0;
}

int rootfs_make(const struct fields *request, int *root, int *layer, struct err *err)
{
	struct fields rootfs = fields_group(request, T_ROOTFS);
	if (make_stage(err) < 0 || mount_image(&rootfs, err) < 0 || mount_layer(&rootfs, err) < 0 ||
	    make_layer(err) < 0 || mount_both(err) < 0)
		return -1;
	*layer = open(LAYER, O_PATH | O_DIRECTORY | O_CLOEXEC);
	*root = open(ROOT, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return *root < 0 || *layer < 0 ? fail_errno(err, "open the root") : 0;
}

int rootfs_enter(int root, struct err *err)
{
	if (fchdir(root) < 0 || sys_pivot_root(".", ".") < 0 || umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
		return fail_errno(err, "enter the root");
	return 0;
}
