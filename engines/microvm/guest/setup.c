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

/*
 * Sets those that are there, or with `rest` those that were not: an interface's come with its name, while others have
 * to stand before it gets its addresses.
 */
static int set_sysctls(const struct fields *request, bool *done, bool rest, struct err *err)
{
	struct fields it = *request;
	struct field each;
	size_t index = 0;
	int root = open("/proc/sys", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (root < 0)
		return fail_errno(err, "open /proc/sys");
	while (fields_each(&it, T_SYSCTL, &each)) {
		struct fields group = field_group(&each);
		const char *name = fields_text(&group, T_NAME, ""), *value = fields_text(&group, T_VALUE, "");
		bool *set = &done[index++];
		if (*set)
			continue;
		*set = sysctl(root, name, value) == 0;
		if (!*set && (rest || errno != ENOENT)) {
			char field[sizeof err->field];
			fail(err, errno, "set a sysctl", "%s = %s: %s", name, value, strerror(errno));
			snprintf(field, sizeof field, "linux.sysctls[%s]", name);
			close(root);
			return fail_field(err, field);
		}
	}
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
	int result = set_sysctls(request, done, false, err);
	if (result == 0)
		result = set_network(request, err);
	if (result == 0)
		result = set_sysctls(request, done, true, err);
	free(done);
	return result;
}

/* ---- names and files ------------------------------------------------------------------------------------------- */

static int write_new(const char *path, mode_t mode, const char *text, struct err *err)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, mode);
	if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text)) {
		fail(err, errno, "write", "%s: %s", path, strerror(errno));
		if (fd >= 0)
			close(fd);
		return -1;
	}
	close(fd);
	return 0;
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
	if (write_new("/etc/machine-id", 0444, line, err) < 0)
		return -1;
	snprintf(line, sizeof line, "%.8s-%.4s-4%.3s-%c%.3s-%.12s\n", id, id + 8, id + 13, variant, id + 17, id + 20);
	return write_new(POD_BOOT_ID, 0444, line, err);
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

int pod_prepare(struct err *err)
{
	static bool prepared;
	if (prepared)
		return 0;
	/* One that failed half-way is no pod's. */
	prepared = true;
	return make_directories(err) < 0 || mount_shm(SHM_SIZE, 0, err) < 0 || cgroups_prepare(err) < 0 ||
		       devices_prepare(err) < 0 || net_loopback(err) < 0
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
