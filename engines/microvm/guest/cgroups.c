#include "cgroups.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "paths.h"

#define DEPTH_MAX 16
/* What a container may make of groups of its own, so that there is an end to removing them. */
#define DEPTH "15"
#define DESCENDANTS "1000"

/* Files of these controllers are written to, and none of the hierarchy's own. */
static const char *const WRITABLE[] = {"cpu.", "cpuset.", "hugetlb.", "io.", "memory.", "misc.", "pids.", "rdma."};

int cgroups_prepare(struct err *err)
{
	char controllers[512], *state, *name;
	int root = open(CGROUPS, O_PATH | O_DIRECTORY | O_CLOEXEC);
	ssize_t size = root < 0 ? -1 : path_read(root, "cgroup.controllers", controllers, sizeof controllers - 1);
	int result = size < 0 ? fail_errno(err, "read cgroup.controllers") : 0;
	controllers[size < 0 ? 0 : size] = 0;
	for (name = strtok_r(controllers, " \n", &state); name && !result; name = strtok_r(NULL, " \n", &state)) {
		char word[64];
		int length = snprintf(word, sizeof word, "+%s", name);
		int error = file_put(root, "cgroup.subtree_control", word, (size_t)length);
		if (error)
			result = fail(err, error, "enable a controller", "%s: %s", name, strerror(error));
	}
	if (root >= 0)
		close(root);
	return result;
}

int cgroup_make(const char *id, struct err *err)
{
	char path[256];
	snprintf(path, sizeof path, CGROUPS "/%s", id);
	if (mkdir(path, 0755) < 0)
		return fail_errno(err, "make the cgroup");
	int error, fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0) {
		fail_errno(err, "open the cgroup");
	} else if ((error = file_put(fd, "cgroup.max.depth", DEPTH, strlen(DEPTH))) ||
		   (error = file_put(fd, "cgroup.max.descendants", DESCENDANTS, strlen(DESCENDANTS)))) {
		fail(err, error, "bound the cgroup", "%s", strerror(error));
		close(fd);
	} else {
		return fd;
	}
	rmdir(path);
	return -1;
}

/* ---- limits -------------------------------------------------------------------------------------------------- */

static bool writable(const char *name)
{
	if (strchr(name, '/'))
		return false;
	for (size_t index = 0; index < sizeof WRITABLE / sizeof *WRITABLE; index++)
		if (strncmp(name, WRITABLE[index], strlen(WRITABLE[index])) == 0)
			return true;
	return false;
}

static int refused(struct err *err, int error, const char *name, const char *value)
{
	char field[sizeof err->field];
	fail(err, error, "write to the cgroup", "%s = %s: %s", name, value, strerror(error));
	snprintf(field, sizeof field, "linux.resources[%s]", name);
	return fail_field(err, field);
}

static int put(int cgroup, const char *name, const char *value, struct err *err)
{
	int error = writable(name) ? file_put(cgroup, name, value, strlen(value)) : EPERM;
	return error ? refused(err, error, name, value) : 0;
}

int cgroup_apply(int cgroup, const struct fields *request, enum cgroup_part part, struct err *err)
{
	struct fields it = *request;
	struct field each;
	while (fields_each(&it, T_CGROUP, &each)) {
		struct fields group = field_group(&each);
		const char *name = fields_text(&group, T_NAME, ""), *value = fields_text(&group, T_VALUE, "");
		if ((strcmp(name, "cpu.max") == 0) == (part == CGROUP_LAST) && put(cgroup, name, value, err) < 0)
			return -1;
	}
	return 0;
}

static bool below_use(int cgroup, const char *name, const char *value)
{
	char text[64], *end;
	unsigned long long limit = strtoull(value, &end, 10);
	if (strcmp(name, "memory.max") != 0 || end == value)
		return false;
	ssize_t size = path_read(cgroup, "memory.current", text, sizeof text - 1);
	text[size < 0 ? 0 : size] = 0;
	return strtoull(text, NULL, 10) > limit;
}

/* Writes the first group of `it` and then the others; on an error what was there before comes back, last one first. */
static int update(int cgroup, struct fields *it, unsigned depth, struct err *err)
{
	struct field each;
	char before[4096];
	if (!fields_each(it, T_CGROUP, &each))
		return 0;
	struct fields group = field_group(&each);
	const char *name = fields_text(&group, T_NAME, ""), *value = fields_text(&group, T_VALUE, "");
	if (depth > DEPTH_MAX || !writable(name))
		return refused(err, depth > DEPTH_MAX ? E2BIG : EPERM, name, value);
	ssize_t size = path_read(cgroup, name, before, sizeof before);
	if (size < 0)
		return refused(err, errno, name, value);
	if (below_use(cgroup, name, value))
		return refused(err, EBUSY, name, value);
	if (put(cgroup, name, value, err) < 0)
		return -1;
	if (update(cgroup, it, depth + 1, err) == 0)
		return 0;
	file_put(cgroup, name, before, (size_t)size);
	return -1;
}

int cgroup_update(int cgroup, const struct fields *request, struct err *err)
{
	struct fields it = *request;
	return update(cgroup, &it, 0, err);
}

/* ---- processes ----------------------------------------------------------------------------------------------- */

/* Calls `each` for every group in and below it, those below first. */
static void walk(int parent, const char *name, unsigned depth, void (*each)(int cgroup, void *data), void *data)
{
	int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	DIR *directory = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *entry;
	if (!directory) {
		if (fd >= 0)
			close(fd);
		return;
	}
	while (depth < DEPTH_MAX && (entry = readdir(directory)))
		if (entry->d_type == DT_DIR && entry->d_name[0] != '.')
			walk(fd, entry->d_name, depth + 1, each, data);
	each(fd, data);
	closedir(directory);
}

/* Calls `each` for every process of it. */
static void processes(int cgroup, void (*each)(pid_t pid, void *data), void *data)
{
	int fd = openat(cgroup, "cgroup.procs", O_RDONLY | O_CLOEXEC);
	FILE *list = fd < 0 ? NULL : fdopen(fd, "r");
	int pid;
	if (!list) {
		if (fd >= 0)
			close(fd);
		return;
	}
	while (fscanf(list, "%d", &pid) == 1)
		if (pid > 0)
			each(pid, data);
	fclose(list);
}

struct visit {
	void (*each)(pid_t pid, void *data);
	void *data;
};

static void visit_group(int cgroup, void *data)
{
	const struct visit *visit = data;
	processes(cgroup, visit->each, visit->data);
}

void cgroup_each(int cgroup, void (*each)(pid_t pid, void *data), void *data)
{
	struct visit visit = {each, data};
	walk(cgroup, ".", 0, visit_group, &visit);
}

static void count_one(pid_t pid, void *data)
{
	(void)pid;
	++*(uint64_t *)data;
}

uint64_t cgroup_count(int cgroup)
{
	uint64_t count = 0;
	cgroup_each(cgroup, count_one, &count);
	return count;
}

static void signal_one(pid_t pid, void *data)
{
	kill(pid, *(const int *)data);
}

int cgroup_signal(int cgroup, int signo, struct err *err)
{
	if (signo == SIGKILL)
		return cgroup_kill(cgroup, err);
	cgroup_each(cgroup, signal_one, &signo);
	return 0;
}

int cgroup_kill(int cgroup, struct err *err)
{
	int error = file_put(cgroup, "cgroup.kill", "1", 1);
	return error ? fail(err, error, "kill the cgroup", "%s", strerror(error)) : 0;
}

/* ---- state --------------------------------------------------------------------------------------------------- */

bool cgroup_is(int file, const char *line)
{
	char text[256];
	ssize_t size = pread(file, text, sizeof text - 1, 0);
	size_t length = strlen(line);
	text[size < 0 ? 0 : size] = 0;
	for (char *at = text; *at; at += strcspn(at, "\n"), at += *at == '\n')
		if (strncmp(at, line, length) == 0 && (at[length] == '\n' || !at[length]))
			return true;
	return false;
}

int cgroup_await(int cgroup, const char *line, int milliseconds, struct err *err)
{
	int64_t end = milliseconds_now() + milliseconds, left;
	int file = openat(cgroup, "cgroup.events", O_RDONLY | O_CLOEXEC);
	bool found = false;
	if (file < 0)
		return fail_errno(err, "read cgroup.events");
	while (!(found = cgroup_is(file, line)) && (left = end - milliseconds_now()) > 0) {
		struct pollfd wait = {.fd = file, .events = POLLPRI};
		poll(&wait, 1, (int)left);
	}
	close(file);
	return found ? 0 : fail(err, ETIMEDOUT, "wait for the cgroup", "%s: not within %d ms", line, milliseconds);
}

uint64_t cgroup_value(int cgroup, const char *file, const char *key)
{
	char text[8192];
	size_t length = strlen(key);
	ssize_t size = path_read(cgroup, file, text, sizeof text - 1);
	text[size < 0 ? 0 : size] = 0;
	for (char *at = text; *at; at += strcspn(at, "\n"), at += *at == '\n')
		if (strncmp(at, key, length) == 0 && at[length] == ' ')
			return strtoull(at + length + 1, NULL, 10);
	return 0;
}

static void remove_tree(int parent, const char *name, unsigned depth)
{
	int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	DIR *directory = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *entry;
	while (directory && depth < DEPTH_MAX && (entry = readdir(directory)))
		if (entry->d_type == DT_DIR && entry->d_name[0] != '.')
			remove_tree(fd, entry->d_name, depth + 1);
	if (directory)
		closedir(directory);
	else if (fd >= 0)
		close(fd);
	unlinkat(parent, name, AT_REMOVEDIR);
}

void cgroup_remove(const char *id)
{
	int root = open(CGROUPS, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (root < 0)
		return;
	remove_tree(root, id, 0);
	close(root);
}

int cgroup_door(pid_t pid, struct err *err)
{
	char path[64], text[4096] = "", whole[4200];
	snprintf(path, sizeof path, "/proc/%d/cgroup", (int)pid);
	ssize_t size = path_read(AT_FDCWD, path, text, sizeof text - 1);
	if (size < 0)
		return fail_errno(err, "read the process's cgroup");
	text[size] = 0;
	char *line = strstr(text, "0::/");
	if (!line)
		return fail(err, ESRCH, "read the process's cgroup", "%s", strerror(ESRCH));
	line[strcspn(line, "\n")] = 0;
	snprintf(whole, sizeof whole, CGROUPS "%s/cgroup.procs", line + 3);
	int fd = open(whole, O_WRONLY | O_CLOEXEC);
	return fd < 0 ? fail_errno(err, "open the process's cgroup") : fd;
}
