#include "setup.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "calls.h"
#include "cgroups.h"
#include "devices.h"
#include "namespaces.h"
#include "net.h"

/* Bytes of a /dev/shm that nobody has said a size of. */
#define SHM_SIZE (64u << 20)

/* No id of a container has a dot. */
#define FIRST_GROUP ".first"

static const char *const DIRECTORIES[] = {"/etc", "/run", "/run/pod", POD_SHM, POD_DIRECTORIES};

/* ---- sysctls ------------------------------------------------------------------------------------------------- */

/* As sysctl(8) reads it: with dots, or with slashes where a part has a dot in it. */
static void sysctl_path(const char *name, char *path, size_t size)
{
	snprintf(path, size, "%s", name);
	if (!strchr(path, '/'))
		for (char *at = path; (at = strchr(at, '.'));)
			*at = '/';
}

static int sysctl(int root, const char *name, const char *value)
{
	char path[4096];
	sysctl_path(name, path, sizeof path);
	int fd = sys_openat2(root, path, O_WRONLY | O_CLOEXEC, 0,
			     K_RESOLVE_BENEATH | K_RESOLVE_NO_SYMLINKS | K_RESOLVE_NO_XDEV);
	if (fd < 0)
		return -1;
	ssize_t written = write(fd, value, strlen(value));
	int error = written < 0 ? errno : EINVAL;
	close(fd);
	errno = error;
	return written == (ssize_t)strlen(value) ? 0 : -1;
}

/* What nodes give their pods unless they are told otherwise is so before a machine is a pod's; `before` it was that. */
static struct usual {
	const char *name, *value;
	char before[32];
} usual[] = {
	{"net.ipv4.ip_unprivileged_port_start", "0", ""},
	{"net.ipv4.ping_group_range", "0 2147483647", ""},
};

static struct usual *usual_of(const char *name)
{
	for (struct usual *one = usual; one < usual + sizeof usual / sizeof *usual; one++)
		if (*one->before && strcmp(one->name, name) == 0)
			return one;
	return NULL;
}

static int sysctl_read(int root, const char *name, char *value, size_t size)
{
	char path[128];
	sysctl_path(name, path, sizeof path);
	int fd = openat(root, path, O_RDONLY | O_CLOEXEC);
	ssize_t got = fd < 0 ? -1 : read(fd, value, size - 1);
	if (fd >= 0)
		close(fd);
	value[got > 0 ? got : 0] = 0;
	return got > 0 && (size_t)got < size - 1 ? 0 : -1;
}

/* One that this kernel does not have, or does not let be so, is the pod's to fail at. */
static int prepare_sysctls(struct err *err)
{
	int root = open("/proc/sys", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (root < 0)
		return fail_errno(err, "open /proc/sys");
	for (struct usual *one = usual; one < usual + sizeof usual / sizeof *usual; one++)
		if (sysctl_read(root, one->name, one->before, sizeof one->before) < 0 || sysctl(root, one->name, one->value) < 0)
			one->before[0] = 0;
	close(root);
	return 0;
}

static bool mentions(const struct fields *request, const char *name)
{
	struct fields it = *request;
	struct field each;
	while (fields_each(&it, T_SYSCTL, &each)) {
		struct fields group = field_group(&each);
		if (strcmp(fields_text(&group, T_NAME, ""), name) == 0)
			return true;
	}
	return false;
}

/* What is usual, but not this pod's. */
static int restore_sysctls(const struct fields *request, struct err *err)
{
	for (struct usual *one = usual; one < usual + sizeof usual / sizeof *usual; one++) {
		if (!*one->before || mentions(request, one->name))
			continue;
		int root = open("/proc/sys", O_PATH | O_DIRECTORY | O_CLOEXEC);
		int result = root < 0 || sysctl(root, one->name, one->before) < 0 ? -1 : 0;
		if (result < 0)
			fail(err, errno, "restore a sysctl", "%s: %s", one->name, strerror(errno));
		if (root >= 0)
			close(root);
		if (result < 0)
			return -1;
	}
	return 0;
}

/*
 * Sets those that are there, or with `rest` those that were not: an interface's come with its name, while others have
 * to stand before it gets its addresses.
 */
static int set_sysctls(const struct fields *request, bool *done, bool rest, struct err *err)
{
	struct fields it = *request;
	struct field each;
	size_t index = 0;
	int root = -1;
	while (fields_each(&it, T_SYSCTL, &each)) {
		struct fields group = field_group(&each);
		const char *name = fields_text(&group, T_NAME, ""), *value = fields_text(&group, T_VALUE, "");
		const struct usual *known = usual_of(name);
		bool *set = &done[index++];
		*set = *set || (known && strcmp(known->value, value) == 0);
		if (*set)
			continue;
		if (root < 0 && (root = open("/proc/sys", O_PATH | O_DIRECTORY | O_CLOEXEC)) < 0)
			return fail_errno(err, "open /proc/sys");
		*set = sysctl(root, name, value) == 0;
		if (!*set && (rest || errno != ENOENT)) {
			char field[sizeof err->field];
			fail(err, errno, "set a sysctl", "%s = %s: %s", name, value, strerror(errno));
			snprintf(field, sizeof field, "linux.sysctls[%s]", name);
			close(root);
			return fail_field(err, field);
		}
	}
	if (root >= 0)
		close(root);
	return 0;
}

static int set_network(const struct fields *request, struct err *err)
{
	struct fields it = *request;
	struct field each;
	unsigned index = 0;
	while (fields_each(&it, T_INTERFACE, &each)) {
		struct fields group = field_group(&each);
		if (net_interface(&group, index++, err) < 0)
			return -1;
	}
	return 0;
}

static int set_kernel(const struct fields *request, struct err *err)
{
	struct fields it = *request;
	struct field each;
	size_t count = 0;
	while (fields_each(&it, T_SYSCTL, &each))
		count++;
	bool *done = calloc(count + 1, sizeof *done);
	if (!done)
		return fail_errno(err, "allocate");
	int result = restore_sysctls(request, err);
	if (result == 0)
		result = set_sysctls(request, done, false, err);
	if (result == 0)
		result = set_network(request, err);
	if (result == 0)
		result = set_sysctls(request, done, true, err);
	free(done);
	return result;
}

/* ---- names and files ------------------------------------------------------------------------------------------- */

/* Open since the machine was prepared: of what it does as a pod's, each thing it does first costs an emulated one most. */
static struct identity {
	const char *path;
	int fd;
} identities[] = {{"/etc/machine-id", -1}, {POD_BOOT_ID, -1}};

static int open_identities(struct err *err)
{
	for (struct identity *one = identities; one < identities + sizeof identities / sizeof *identities; one++) {
		one->fd = open(one->path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0444);
		if (one->fd < 0)
			return fail(err, errno, "make", "%s: %s", one->path, strerror(errno));
	}
	return 0;
}

static int write_once(struct identity *one, const char *text, struct err *err)
{
	ssize_t size = (ssize_t)strlen(text);
	int result = write(one->fd, text, (size_t)size) == size ? 0 : -1;
	if (result < 0)
		fail(err, errno, "write", "%s: %s", one->path, strerror(errno));
	close(one->fd);
	return result;
}

/*
 * Machines cloned from one template have its boot's id in common, which programs take for the machine's own. Containers
 * see one made of the pod's machine id, with the digits by which a random UUID is known (RFC 9562, section 5.4).
 */
static int write_identity(const char *id, struct err *err)
{
	char line[64], variant = "89ab"[id[16] & 3];
	if (strspn(id, "0123456789abcdef") != 32) {
		fail(err, EINVAL, "set the machine's id", "%s is not 32 hexadecimal digits", id);
		return fail_field(err, "machine_id");
	}
	snprintf(line, sizeof line, "%s\n", id);
	if (write_once(&identities[0], line, err) < 0)
		return -1;
	snprintf(line, sizeof line, "%.8s-%.4s-4%.3s-%c%.3s-%.12s\n", id, id + 8, id + 13, variant, id + 17, id + 20);
	return write_once(&identities[1], line, err);
}

static int set_names(const struct fields *request, struct err *err)
{
	const char *hostname = fields_text(request, T_HOSTNAME, "");
	if (sethostname(hostname, strlen(hostname)) < 0) {
		fail_errno(err, "set the host name");
		return fail_field(err, "hostname");
	}
	return write_identity(fields_text(request, T_MACHINE_ID, ""), err);
}

static int mount_shm(uint64_t size, unsigned long flags, struct err *err)
{
	char options[64];
	snprintf(options, sizeof options, "mode=1777,size=%llu", (unsigned long long)size);
	if (mount("shm", POD_SHM, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC | flags, options) < 0)
		return fail_errno(err, "mount the pod's /dev/shm");
	return 0;
}

static int make_directories(struct err *err)
{
	for (size_t index = 0; index < sizeof DIRECTORIES / sizeof *DIRECTORIES; index++)
		if (mkdir(DIRECTORIES[index], 0755) < 0 && errno != EEXIST)
			return fail(err, errno, "mkdir", "%s: %s", DIRECTORIES[index], strerror(errno));
	return 0;
}

/* With the first group the kernel changes code of its own, which an emulator translates anew; back with the last one. */
static int prepare_group(struct err *err)
{
	int cgroup = cgroup_make(FIRST_GROUP, err);
	int result = cgroup < 0 ? -1 : devices_prepare(cgroup, err);
	if (cgroup >= 0)
		close(cgroup);
	return result;
}

int pod_prepare(struct err *err)
{
	static bool prepared;
	if (prepared)
		return 0;
	/* One that failed half-way is no pod's. */
	prepared = true;
	return make_directories(err) < 0 || open_identities(err) < 0 || prepare_sysctls(err) < 0 || mount_shm(SHM_SIZE, 0, err) < 0 || cgroups_prepare(err) < 0 ||
		       prepare_group(err) < 0 || net_prepare(err) < 0
		   ? -1
		   : 0;
}

int pod_setup(const struct fields *request, struct err *err)
{
	uint64_t shm = fields_u64(request, T_SHM_SIZE, SHM_SIZE);
	if (pod_prepare(err) < 0 || (shm != SHM_SIZE && mount_shm(shm, MS_REMOUNT, err) < 0) ||
	    set_names(request, err) < 0 || set_kernel(request, err) < 0)
		return -1;
	return fields_bool(request, T_SHARED_PID) ? pids_share(err) : 0;
}

void pod_stats(struct reply *reply)
{
	int proc = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (proc < 0)
		return;
	reply_file(reply, proc, "net/dev");
	reply_file(reply, proc, "meminfo");
	close(proc);
}

/* ---- the pod's directories ------------------------------------------------------------------------------------- */

static int make_directory(const char *path, const char *options, mode_t mode, struct err *err)
{
	if (mkdir(path, 0755) < 0)
		return errno == EEXIST ? 0 : fail_errno(err, "mkdir the pod's directory");
	if (mount("pod", path, "tmpfs", 0, options) < 0) {
		fail_errno(err, "mount the pod's directory");
	} else if (chmod(path, mode ? mode : 0777) < 0) {
		fail_errno(err, "chmod the pod's directory");
		umount2(path, MNT_DETACH);
	} else {
		return 0;
	}
	rmdir(path);
	return -1;
}

int pod_directory(const char *name, const char *options, mode_t mode, struct err *err)
{
	char path[512];
	if (!*name || *name == '.' || strchr(name, '/') || strlen(name) > NAME_MAX) {
		fail(err, EINVAL, "make the pod's directory", "%s is no name", name);
		return fail_field(err, "mounts");
	}
	snprintf(path, sizeof path, POD_DIRECTORIES "/%s", name);
	if (make_directory(path, options, mode, err) < 0)
		return fail_field(err, "mounts");
	int fd = open(path, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	return fd < 0 ? fail_errno(err, "open the pod's directory") : fd;
}
