/* New processes of the agent's, in the namespaces and the cgroup that they are to be in. */
#pragma once

#include "agent.h"

/* The pod's PID namespace, whose first process reaps what is left to it; once, at SETUP. */
int pids_share(struct err *err);
/* A descriptor of it, or -1: the pod has none. */
int pids_shared(void);

/* A descriptor of one of a process's namespaces, as "mnt"; -1 with *err. */
int namespace_of(pid_t pid, const char *name, struct err *err);

/*
 * fork(2), into the cgroup, with new namespaces (`flags` of clone(2)), and into the PID namespace of `pids` (-1: the
 * agent's own, or with CLONE_NEWPID a new one). The child is the agent's. Its pid, 0 in the child, -1 with *err.
 */
pid_t namespaces_fork(uint64_t flags, int pids, int cgroup, struct err *err);

/*
 * In such a child, first of all: with a program's signals, with none of the agent's descriptors but 0 to 2, which are
 * /dev/null, and those in `keep` (-1: no descriptor), killed for memory as proc(5) says of the score, and not to be
 * looked into by those it is among now.
 */
void namespaces_child(const int *keep, size_t count, int oom_score_adj);
