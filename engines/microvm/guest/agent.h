/*
 * The agent: PID 1 of the machine. One thread, one loop.
 *
 * Its root is a tmpfs on which pivot_root(2) works, with /dev (devtmpfs), /dev/pts, /proc, /sys, /run and
 * /sys/fs/cgroup (version 2; the agent in its root group); mounts are private. It is never killed for memory
 * (oom_score_adj -1000, which a fork inherits).
 *
 * The core (main, loop, frames, fields, streams, processes, requests) has the port, streams and children; what a
 * container is lies behind the seam at the end. A request's payload has been checked against schema.h before anybody
 * reads it: what has to be there is there, of its size and within its bounds.
 */
#pragma once

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/types.h>

#include "protocol.h"

#define PRINTF(text, first) __attribute__((format(printf, text, first)))

/* ---- errors -------------------------------------------------------------------------------------------------- */

/* Plain data: a child may write it into a pipe for its parent to read. */
struct err {
	int number;
	char step[64];
	char message[512];
	char field[64];
};

/* Fills in *err and returns -1. `step`: what was being done, as "mount /proc". A number of 0 becomes EIO. */
int fail(struct err *err, int number, const char *step, const char *format, ...) PRINTF(4, 5);
/* fail with errno and its text as the message. */
int fail_errno(struct err *err, const char *step);
/* And which field of the request is at fault. Returns -1. */
int fail_field(struct err *err, const char *field);

/* ---- reading fields ------------------------------------------------------------------------------------------ */

struct fields {
	const unsigned char *at, *end;
};

struct field {
	uint16_t tag;
	uint32_t size;
	/* Of a text, size bytes and a NUL. */
	const unsigned char *data;
};

/* The next field of the group; false at its end. `it` moves. Valid as long as the request is handled. */
bool fields_next(struct fields *it, struct field *out);
/* The first field of that tag; none: false, and `out` is as it was. The others likewise leave `in` where it is. */
bool fields_find(const struct fields *in, unsigned tag, struct field *out);
/* The next one of that tag: for lists. */
bool fields_each(struct fields *it, unsigned tag, struct field *out);
bool fields_has(const struct fields *in, unsigned tag);
uint64_t fields_u64(const struct fields *in, unsigned tag, uint64_t missing);
bool fields_bool(const struct fields *in, unsigned tag);
const char *fields_text(const struct fields *in, unsigned tag, const char *missing);
/* An empty group where it is missing. */
struct fields fields_group(const struct fields *in, unsigned tag);
uint64_t field_u64(const struct field *field);
const char *field_text(const struct field *field);
struct fields field_group(const struct field *field);

/* ---- writing answers ----------------------------------------------------------------------------------------- */

struct reply {
	unsigned char *data;
	size_t size, room;
	/* It did not fit: the request fails with EMSGSIZE. */
	bool over;
};

void reply_u64(struct reply *reply, unsigned tag, uint64_t value);
/* What is not UTF-8 in it becomes '?'. */
void reply_text(struct reply *reply, unsigned tag, const char *text);
void reply_bytes(struct reply *reply, unsigned tag, const void *data, size_t size);
/* A group: what is written between the two is in it. */
size_t reply_open(struct reply *reply, unsigned tag);
void reply_close(struct reply *reply, size_t opened);
/* A FILE group: NAME, and CONTENT as it is in directory/name, at most FO_DATA_MAX. Nothing where it cannot be read. */
void reply_file(struct reply *reply, int directory, const char *name);

/* ---- programs and streams ------------------------------------------------------------------------------------ */

struct limit {
	int resource;
	struct rlimit value;
};

/* A PROGRAM taken apart. Its memory is its own; fork copies it. */
struct program {
	char **args, **env; /* each ends with NULL */
	const char *cwd;
	uid_t uid;
	gid_t gid;
	gid_t *groups;
	size_t group_count;
	mode_t umask;
	bool tty, stdin_open, no_new_privs, has_oom_score_adj;
	int oom_score_adj;
	struct {
		uint64_t bounding, effective, permitted, inheritable, ambient;
	} caps;
	struct sock_filter *seccomp; /* NULL: none */
	unsigned short seccomp_count;
	unsigned seccomp_flags;
	struct limit *limits;
	size_t limit_count;
	void *memory;
};

int program_parse(const struct fields *group, struct program *out, struct err *err);
void program_free(struct program *program);

/*
 * A process's side of its streams, all close-on-exec, for dup2 onto 0, 1 and 2; the core makes them, owned by the
 * program's user, and closes them after the call. With program->tty the three are -1, and the callee opens a terminal
 * of the container's devpts: the slave becomes the process's 0, 1, 2 and controlling terminal, owned by its user, and
 * the master is the core's once it is born.
 */
struct stdio {
	int in, out, err;
	int terminal;
};

/* ---- what the core does for the rest ------------------------------------------------------------------------- */

/* A line for the operator (NOTE). */
void note(const char *format, ...) PRINTF(1, 2);
/*
 * In a child, first of all: signals and scheduling as a program expects them, where the core blocks all, ignores
 * SIGPIPE, and does not preempt. A child has to close every descriptor that is not its own as early: other processes'
 * streams end when nobody has them.
 */
void child_signals(void);
/* Calls `ready` in the loop when the descriptor is. `watch` belongs to the caller and outlives its time in the loop. */
struct watch {
	void (*ready)(struct watch *watch, uint32_t events);
	int fd;
};
int watch_add(struct watch *watch, uint32_t events);
void watch_remove(struct watch *watch);
/* Of the monotonic clock. */
int64_t milliseconds_now(void);
/* A whole buffer into a file that exists, in one write; an errno or 0. */
int file_put(int directory, const char *path, const void *data, size_t size);

/* ---- the seam: containers ------------------------------------------------------------------------------------ */

/*
 * All of these block the loop: for milliseconds, and never without a bound. They return 0, or -1 with *err filled in
 * and nothing left behind. Processes they return are children of the agent's (CLONE_PARENT where need be), which the
 * core reaps; helpers of their own they wait for themselves before they return.
 */
struct container;

/*
 * A process that was forked, and is neither held nor executed yet. What it waits for may be the host's files, or
 * whoever in its container has stopped it: the core goes on, until `word` can be read, or for so many milliseconds.
 */
struct unborn {
	pid_t pid;
	int word, milliseconds;
};

/* SETUP but TIME and ENTROPY, which the core has done before. Once. */
/* What every pod's machine has: done before a template is saved, else with SETUP; what is done is not done again. */
int pod_prepare(struct err *err);
int pod_setup(const struct fields *request, struct err *err);
/* The machine's files for STATS. */
void pod_stats(struct reply *reply);

/*
 * A container whose first process is held before execve, which cannot fail any more for want of the program. EEXIST:
 * the id is taken.
 */
int container_create(const struct fields *request, const struct program *program, const struct stdio *stdio,
		     struct unborn **out, struct err *err);
int container_exec(struct container *container, const struct program *program, const struct stdio *stdio,
		   struct unborn **out, struct err *err);
/*
 * The end of either, which frees `unborn`; a container that was made is put into `out`, a terminal into `terminal`.
 * `why` is 0, or the error for which it is not waited for any more, and killed.
 */
int container_born(struct unborn *unborn, int why, struct container **out, int *terminal, struct err *err);
int container_start(struct container *container, struct err *err);
/* To every process of its cgroup. */
int container_signal_all(struct container *container, int signo, struct err *err);
int container_update(struct container *container, const struct fields *request, struct err *err);
/* Returns once all its processes stand still, or go on. */
int container_freeze(struct container *container, bool on, struct err *err);
/* Adds one STATS group. */
void container_stats(struct container *container, struct reply *reply);
/*
 * Kills what is left of it, and nothing more is executed in it. By `word`, which is the caller's, EPOLLPRI tells that it
 * may be over; what cannot be killed, as it waits for the host, is waited for so many milliseconds.
 */
int container_end(struct container *container, int *word, int *milliseconds, struct err *err);
bool container_over(int word);
/* Kills what is left of it, unmounts, forgets: `container` is gone after 0. */
int container_delete(struct container *container, struct err *err);
/* Its first process has been reaped: it is stopped, and the others in its cgroup are killed. */
void container_exited(struct container *container);
/* How often the kernel has killed one of its processes for memory. */
uint64_t container_oom_kills(struct container *container);

struct container *container_find(const char *id);
/* All of them, from NULL to NULL. */
struct container *container_next(struct container *after);

/*
 * The last steps of a process that is in its namespaces and root, with its oom score; does not return. In this order:
 * limits, umask, stdio and terminal (setsid), cwd, supplementary groups, bounding set, keep caps, gid, uid, cwd once more
 * if root could not, inheritable and permitted and effective and ambient sets, no_new_privs, seccomp, [the cgroup if it
 * is not in it yet: `door` >= 0 is an open cgroup.procs], [held here if `hold` >= 0: until a byte can be read from it],
 * execve. Where no_new_privs is off seccomp is loaded before the uid changes. An error before the hold is written as a
 * struct err into `report`, which is closed when it begins.
 */
_Noreturn void child_become(const struct program *program, const char *path, struct stdio *stdio, int door, int hold,
			    int report);
