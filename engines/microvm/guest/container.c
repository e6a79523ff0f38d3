/* The seam: what a container is to the agent's core. */
#include "container.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "calls.h"
#include "cgroups.h"
#include "devices.h"
#include "disks.h"
#include "namespaces.h"
#include "setup.h"
#include "usage.h"

/* A child that is not ready by then waits for something that will not come, as for the host's files. */
#define READY_MS 20000
/* Of what is left of one that could not be made. */
#define LEFT_MS 500
#define EMPTY_MS 10000
#define FROZEN_MS 5000

static struct container *containers;

/* Of its cgroup, for STATS. */
static const char *const FILES[] = {
	"cpu.stat",	       "cpu.pressure",	  "memory.current", "memory.stat", "memory.events",
	"memory.max",	       "memory.peak",	  "memory.swap.current", "memory.swap.max", "memory.pressure",
	"io.stat",	       "io.pressure",	  "pids.current",   "pids.max",
};

static struct container *named(const char *id)
{
	struct container *one = containers;
	while (one && strcmp(one->id, id) != 0)
		one = one->next;
	return one;
}

/* One that is still being made is nobody's yet. */
struct container *container_find(const char *id)
{
	struct container *one = named(id);
	return one && one->made ? one : NULL;
}

struct container *container_next(struct container *after)
{
	struct container *one = after ? after->next : containers;
	while (one && !one->made)
		one = one->next;
	return one;
}

/* ---- create ---------------------------------------------------------------------------------------------------- */

/* The process that mounts them then need not wait, in a cgroup that has little of the processor. */
static int await_disk(const struct fields *group, unsigned tag, const char *field, struct err *err)
{
	struct disk disk;
	if (!fields_has(group, tag) || disk_find((unsigned)fields_u64(group, tag, 0), &disk, err) == 0)
		return 0;
	return fail_field(err, field);
}

static int await_disks(const struct fields *request, struct err *err)
{
	struct fields rootfs = fields_group(request, T_ROOTFS), it = *request;
	struct field each;
	if (await_disk(&rootfs, T_LUN, "rootfs", err) < 0 || await_disk(&rootfs, T_UPPER_LUN, "rootfs", err) < 0)
		return -1;
	while (fields_each(&it, T_MOUNT, &each)) {
		struct fields mount = field_group(&each);
		if (await_disk(&mount, T_LUN, "mounts", err) < 0)
			return -1;
	}
	return 0;
}

static void close_one(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

/* Its mounts go with the last process that is in their namespace, before that has left the cgroup. */
static void release(struct container *one)
{
	close_one(&one->hold);
	close_one(&one->layer);
	close_one(&one->pids);
}

/* It names a directory of the cgroups, and no file that is in all of them: those have a dot. */
static int check_id(const char *id, struct err *err)
{
	static const char good[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-";
	if (*id && strlen(id) <= ID_MAX && !id[strspn(id, good)]) {
		if (!named(id))
			return 0;
		fail(err, EEXIST, "create the container", "there is a container %s", id);
	} else {
		fail(err, EINVAL, "create the container", "%s is no id", id);
	}
	return fail_field(err, "container");
}

/* Directories of the pod's are in the agent's mount namespace, to be there for the next container too. */
static int make_directories(const struct fields *request, struct err *err)
{
	struct fields it = *request;
	struct field each;
	while (fields_each(&it, T_MOUNT, &each)) {
		struct fields mount = field_group(&each);
		if (fields_u64(&mount, T_MOUNT_KIND, 0) != MOUNT_POD)
			continue;
		int fd = pod_directory(fields_text(&mount, T_SOURCE, ""), fields_text(&mount, T_OPTIONS, NULL),
				       (mode_t)fields_u64(&mount, T_MODE, 0), err);
		if (fd < 0)
			return -1;
		close(fd);
	}
	return 0;
}

/* Which PID namespace it is in: a descriptor to join, or -1 for one of its own. */
static int choose_pids(const struct fields *request, int *pids, struct err *err)
{
	struct container *target;
	*pids = -1;
	switch (fields_u64(request, T_PID_MODE, PID_OWN)) {
	case PID_OWN:
		return 0;
	case PID_POD:
		*pids = pids_shared();
		if (*pids < 0)
			fail(err, EINVAL, "find the PID namespace", "the pod's containers do not share theirs");
		break;
	default:
		target = container_find(fields_text(request, T_TARGET, ""));
		if (target && !target->stopped)
			*pids = target->pids;
		else
			fail(err, ESRCH, "find the PID namespace", "container %s is not running",
			     fields_text(request, T_TARGET, ""));
	}
	return *pids < 0 ? fail_field(err, "linux.security_context.namespace_options") : 0;
}

static void measure_layer(const struct container *one, uint64_t *bytes, uint64_t *inodes)
{
	struct statfs found;
	*bytes = *inodes = 0;
	if (one->layer < 0 || fstatfs(one->layer, &found) < 0)
		return;
	*bytes = (uint64_t)(found.f_blocks - found.f_bfree) * (uint64_t)found.f_bsize;
	*inodes = (uint64_t)(found.f_files - found.f_ffree);
}

/* Its first process has ended, and not of itself. */
static int died(struct container *one, struct err *err)
{
	if (!container_oom_kills(one))
		return fail(err, ECHILD, "wait for the process", "it was killed before it could start");
	fail(err, ENOMEM, "wait for the process",
	     "it was killed for memory before it could start: its limit is too low");
	return fail_field(err, "linux.resources[memory.max]");
}

static struct birth *conceive(const struct container *one, const struct program *program, const struct stdio *stdio,
			      struct err *err)
{
	struct birth *birth = calloc(1, sizeof *birth);
	if (!birth) {
		fail_errno(err, "begin a process");
		return NULL;
	}
	*birth = (struct birth){
		.unborn = {.milliseconds = READY_MS},
		.id = one->id,
		.program = program,
		.stdio = stdio,
		.pids = -1,
		.cgroup = -1,
		.first = -1,
		.door = -1,
		.hold = -1,
		.layer = -1,
		.handover = -1,
	};
	return birth;
}

static void forget(struct birth *birth)
{
	close_one(&birth->hold);
	close_one(&birth->layer);
	free(birth);
}

/* Its first process, on its way. */
static int begin(struct container *one, const struct fields *request, struct birth *first, struct err *err)
{
	if (choose_pids(request, &first->pids, err) < 0)
		return -1;
	first->made = one;
	first->request = request;
	first->cgroup = one->cgroup;
	first->namespaces = CLONE_NEWNS | (first->pids < 0 ? CLONE_NEWPID : 0) |
			    (fields_bool(request, T_IPC_OWN) ? CLONE_NEWIPC : 0);
	return birth_begin(first, err);
}

/* All of it but its memory; its cgroup, and what is in that, is still there after an error. */
static int destroy(struct container *one, int milliseconds, struct err *err)
{
	release(one);
	if (one->cgroup < 0)
		return 0;
	file_put(one->cgroup, "cgroup.freeze", "0", 1);
	if (cgroup_kill(one->cgroup, err) < 0 || cgroup_await(one->cgroup, "populated 0", milliseconds, err) < 0)
		return -1;
	close_one(&one->cgroup);
	cgroup_remove(one->id);
	return 0;
}

static void unlink_one(const struct container *one)
{
	struct container **at = &containers;
	while (*at && *at != one)
		at = &(*at)->next;
	if (*at)
		*at = one->next;
}

/* What has been begun of it. */
static void discard(struct container *one)
{
	struct err ignored;
	unlink_one(one);
	if (destroy(one, LEFT_MS, &ignored) < 0)
		note("container %s: what was begun of it is still there: %s", one->id, ignored.message);
	close_one(&one->cgroup);
	free((void *)one->request.at);
	free(one);
}

/* What is left of the request to do is done without its payload. */
static int keep_request(struct container *one, const struct fields *request, struct err *err)
{
	size_t size = (size_t)(request->end - request->at);
	unsigned char *copy = malloc(size);
	if (!copy)
		return fail_errno(err, "create the container");
	memcpy(copy, request->at, size);
	one->request = (struct fields){copy, copy + size};
	return 0;
}

int container_create(const struct fields *request, const struct program *program, const struct stdio *stdio,
		     struct unborn **out, struct err *err)
{
	const char *id = fields_text(request, T_CONTAINER, "");
	struct birth *first = NULL;
	if (check_id(id, err) < 0)
		return -1;
	struct container *one = calloc(1, sizeof *one);
	if (!one)
		return fail_errno(err, "create the container");
	memcpy(one->id, id, strlen(id) + 1);
	one->cgroup = one->hold = one->pids = one->layer = -1;
	if (keep_request(one, request, err) == 0 && await_disks(request, err) == 0 &&
	    make_directories(request, err) == 0 && (one->cgroup = cgroup_make(id, err)) >= 0 &&
	    cgroup_apply(one->cgroup, request, CGROUP_FIRST, err) == 0 &&
	    (first = conceive(one, program, stdio, err)) && begin(one, request, first, err) == 0) {
		one->next = containers;
		containers = one;
		*out = &first->unborn;
		return 0;
	}
	if (first)
		forget(first);
	discard(one);
	return -1;
}

/* Its first process is held. */
static int made(struct container *one, struct birth *first, struct err *err)
{
	one->pid = first->unborn.pid;
	one->hold = first->hold;
	one->layer = first->layer;
	first->hold = first->layer = -1;
	one->pids = namespace_of(one->pid, "pid", err);
	/* It has said nothing, which may be its end; the kernel counts those that it kills before it does. */
	if (one->pids < 0 || container_oom_kills(one))
		return died(one, err);
	/* It has mounted its disks. */
	if (devices_restrict(one->cgroup, &one->request, err) < 0 ||
	    cgroup_apply(one->cgroup, &one->request, CGROUP_LAST, err) < 0)
		return -1;
	measure_layer(one, &one->layer_bytes, &one->layer_inodes);
	free((void *)one->request.at);
	one->request = (struct fields){NULL, NULL};
	one->made = true;
	return 0;
}

int container_born(struct unborn *unborn, int why, struct container **out, int *terminal, struct err *err)
{
	struct birth *birth = (struct birth *)unborn;
	struct container *one = birth->made;
	int result = birth_end(birth, why, terminal, err);
	if (one && result == 0)
		result = made(one, birth, err);
	forget(birth);
	if (!one)
		return result;
	if (result < 0)
		discard(one);
	else
		*out = one;
	return result;
}

/* ---- life ------------------------------------------------------------------------------------------------------ */

int container_start(struct container *one, struct err *err)
{
	if (one->started || one->stopped)
		return fail(err, EALREADY, "start the container", "it has been started");
	if (write(one->hold, "", 1) != 1)
		return died(one, err);
	close_one(&one->hold);
	one->started = true;
	return 0;
}

int container_exec(struct container *one, const struct program *program, const struct stdio *stdio,
		   struct unborn **out, struct err *err)
{
	if (one->stopped || one->frozen)
		return fail(err, one->stopped ? ESRCH : EBUSY, "execute in the container",
			    one->stopped ? "it has ended" : "it is paused");
	struct birth *next = conceive(one, program, stdio, err);
	if (!next)
		return -1;
	int result = -1;
	next->pids = one->pids;
	next->first = sys_pidfd_open(one->pid);
	if (next->first < 0)
		fail_errno(err, "find the container's process");
	else if ((next->door = cgroup_door(one->pid, err)) >= 0)
		result = birth_begin(next, err);
	close_one(&next->first);
	close_one(&next->door);
	if (result < 0)
		forget(next);
	else
		*out = &next->unborn;
	return result;
}

int container_signal_all(struct container *one, int signo, struct err *err)
{
	return cgroup_signal(one->cgroup, signo, err);
}

int container_update(struct container *one, const struct fields *request, struct err *err)
{
	return cgroup_update(one->cgroup, request, err);
}

int container_freeze(struct container *one, bool on, struct err *err)
{
	int error = file_put(one->cgroup, "cgroup.freeze", on ? "1" : "0", 1);
	if (error)
		return fail(err, error, on ? "pause the container" : "resume the container", "%s", strerror(error));
	if (cgroup_await(one->cgroup, on ? "frozen 1" : "frozen 0", FROZEN_MS, err) < 0) {
		if (on)
			file_put(one->cgroup, "cgroup.freeze", "0", 1);
		return -1;
	}
	one->frozen = on;
	return 0;
}

static const char *state(const struct container *one)
{
	if (one->stopped)
		return "stopped";
	return one->frozen ? "paused" : one->started ? "running" : "created";
}

void container_stats(struct container *one, struct reply *reply)
{
	uint64_t bytes, inodes;
	size_t group = reply_open(reply, T_STATS);
	reply_text(reply, T_CONTAINER, one->id);
	for (size_t index = 0; index < sizeof FILES / sizeof *FILES; index++)
		reply_file(reply, one->cgroup, FILES[index]);
	usage_reply(reply, one->cgroup, one->layer, one->pid);
	measure_layer(one, &bytes, &inodes);
	reply_u64(reply, T_PROCESSES, cgroup_count(one->cgroup));
	reply_u64(reply, T_LAYER_BYTES, bytes > one->layer_bytes ? bytes - one->layer_bytes : 0);
	reply_u64(reply, T_LAYER_INODES, inodes > one->layer_inodes ? inodes - one->layer_inodes : 0);
	reply_text(reply, T_STATE, state(one));
	reply_close(reply, group);
}

uint64_t container_oom_kills(struct container *one)
{
	return cgroup_value(one->cgroup, "memory.events", "oom_kill");
}

void container_exited(struct container *one)
{
	struct err ignored;
	one->stopped = true;
	cgroup_kill(one->cgroup, &ignored);
	/* What it has written is of no use any more, and takes memory that the next one needs. */
	release(one);
}

int container_end(struct container *one, int *word, int *milliseconds, struct err *err)
{
	file_put(one->cgroup, "cgroup.freeze", "0", 1);
	if (cgroup_kill(one->cgroup, err) < 0)
		return -1;
	one->stopped = true;
	release(one);
	*milliseconds = EMPTY_MS;
	*word = openat(one->cgroup, "cgroup.events", O_RDONLY | O_CLOEXEC);
	return *word < 0 ? fail_errno(err, "read cgroup.events") : 0;
}

bool container_over(int word)
{
	return cgroup_is(word, "populated 0");
}

int container_delete(struct container *one, struct err *err)
{
	if (destroy(one, EMPTY_MS, err) < 0)
		return -1;
	unlink_one(one);
	free(one);
	return 0;
}
