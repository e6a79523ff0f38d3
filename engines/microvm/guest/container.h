/* What the two files of the seam know of a container. */
#pragma once

#include "agent.h"

#define ID_MAX 128

struct container {
	struct container *next;
	char id[ID_MAX + 1];
	/* Its first process; until it has been reaped the pid is nobody else's. */
	pid_t pid;
	bool started, stopped, frozen;
	/* Descriptors, -1: none. */
	int cgroup; /* its directory */
	int hold;   /* what its first process waits for */
	int pids;   /* its PID namespace */
	int layer;  /* the file system of what it writes */
	uint64_t layer_bytes, layer_inodes; /* that were in use when it was made */
};

/* What a process is born as. */
struct birth {
	const char *id;			/* of its container */
	const struct fields *request;	/* CREATE: it makes the container, and is held; NULL: EXEC, it joins it */
	const struct program *program;
	struct stdio *stdio; /* the master of its terminal is put into it */
	uint64_t namespaces; /* new ones, as of clone(2) */
	int pids;	     /* the PID namespace to be born in; -1: the agent's, or a new one */
	int cgroup;	     /* CREATE: to be born in; else -1 */
	/* EXEC: a pidfd of the process whose namespaces are joined, and the way into its cgroup; else -1. */
	int first, door;
	/* CREATE: a byte into `hold` lets it go on; `layer` is the file system of what it writes. Both else -1. */
	int hold, layer;
};

/*
 * Forks it, and waits until it is held or has been executed. Its pid, or -1 with *err, no child, and no descriptor more
 * than before.
 */
pid_t birth(struct birth *birth, struct err *err);
