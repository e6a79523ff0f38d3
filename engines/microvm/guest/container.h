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
	int mounts; /* its mount namespace, so that the last one to leave it is the agent */
	int pids;   /* its PID namespace */
	int layer;  /* the file system of what it writes */
	uint64_t layer_bytes, layer_inodes; /* that were in use when it was made */
};

/* What is done in a child before it becomes the program; a first process is held. */
struct birth {
	const struct fields *request; /* CREATE; NULL: EXEC */
	const struct program *program;
	struct stdio *stdio;
	int namespaces; /* EXEC: a pidfd of a process that is in those that it joins, else -1 */
	int hold, report, handover;
};

/*
 * Forks a child that goes through birth_child, and waits until it is held or has been executed. What it hands over is
 * put into *layer (-1 where there is none) and the stdio's terminal. Its pid, or -1 with *err and no child.
 */
pid_t birth(const struct fields *request, const struct program *program, struct stdio *stdio, uint64_t flags, int pids,
	    int cgroup, int namespaces, int *hold, int *layer, struct err *err);
