/* A container's cgroup, of version 2: /sys/fs/cgroup/ID, or what a descriptor of it is given for. */
#pragma once

#include "agent.h"

#define CGROUPS "/sys/fs/cgroup"

/* Every controller that there is, for all containers. */
int cgroups_prepare(struct err *err);

/* A new one; a descriptor of its directory, or -1 with *err. */
int cgroup_make(const char *id, struct err *err);

/* What of a request's CGROUP is meant. A share of the processor holds once there is something to hold back. */
enum cgroup_part { CGROUP_FIRST, CGROUP_LAST };
int cgroup_apply(int cgroup, const struct fields *request, enum cgroup_part part, struct err *err);

/*
 * Writes all of CGROUP or, after an error, has put back what there was. A limit of memory below what is in use is
 * refused (EBUSY): the kernel would kill for it.
 */
int cgroup_update(int cgroup, const struct fields *request, struct err *err);

/* In it and all below it. */
int cgroup_signal(int cgroup, int signo, struct err *err);
int cgroup_kill(int cgroup, struct err *err);
uint64_t cgroup_count(int cgroup);
void cgroup_each(int cgroup, void (*each)(pid_t pid, void *data), void *data);

/* Whether that is a line of cgroup.events, which is open; EPOLLPRI is another change of it. */
bool cgroup_is(int events, const char *line);
/* Waits for a line of cgroup.events, as "populated 0", so many milliseconds at most (ETIMEDOUT). */
int cgroup_await(int cgroup, const char *line, int milliseconds, struct err *err);

/* A number of one of its files of "KEY NUMBER" lines; 0 where there is none. */
uint64_t cgroup_value(int cgroup, const char *file, const char *key);

/* With all below it; what cannot be removed stays. Nothing is in it any more. */
void cgroup_remove(const char *id);

/*
 * For those that join it: cgroup.procs, open for writing, of the group that the process is in, which is below its
 * container's where that has made groups of its own; -1 with *err. Whoever writes "0" to it is in.
 */
int cgroup_door(pid_t pid, struct err *err);
