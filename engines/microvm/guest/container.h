/* What the two files of the seam know of a container. */
#pragma once

#include "agent.h"

#define ID_MAX 128

struct container {
	struct container *next;
	char id[ID_MAX + 1];
	/* Its first process; until it has been reaped the pid is nobody else's. */
	pid_t pid;
	bool made, started, stopped, frozen;
	/* Descriptors, -1: none. */
	int cgroup; /* its directory */
	int hold;   /* what its first process waits for */
	int pids;   /* its PID namespace */
	int layer;  /* the file system of what it writes */
	uint64_t layer_bytes, layer_inodes; /* that were in use when it was made */
	struct fields request;		    /* until it is made; its own */
};

/* What a process is born as; of what is pointed to, what the core has given is there until it is forked. */
struct birth {
	struct unborn unborn;
	const char *id;			/* of its container */
	const struct fields *request;	/* CREATE: it makes the container, and is held; NULL: EXEC, it joins it */
	const struct program *program;
	const struct stdio *stdio;
	uint64_t namespaces; /* new ones, as of clone(2) */
	int pids;	     /* the PID namespace to be born in; -1: the agent's, or a new one */
	int cgroup;	     /* CREATE: to be born in; else -1 */
	/* EXEC: a pidfd of the process whose namespaces are joined, and the way into its cgroup; else -1. */
	int first, door;
	/* CREATE: a byte into `hold` lets it go on; `layer` is the file system of what it writes. Both else -1. */
	int hold, layer;
	/* By which it hands over the layer, and the master of its terminal. */
	int handover;
	struct container *made; /* CREATE */
};

/* Forks it. 0, or -1 with *err, no child, and no descriptor more than before. */
int birth_begin(struct birth *birth, struct err *err);
/*
 * It is held or has been executed (0), or has failed or shall (`why`): -1 with *err, and no child. Descriptors that are
 * left in `birth`, and `terminal`, are the caller's.
 */
int birth_end(struct birth *birth, int why, int *terminal, struct err *err);
