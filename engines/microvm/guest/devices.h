/* A container's /dev, and what it may do with devices. */
#pragma once

#include "agent.h"

/* /dev and what belongs there, but for what is one of the request's mounts; before those are made. */
int devices_mount(const struct fields *request, int root, struct err *err);
/* DEVICE; after them. */
int devices_make(const struct fields *request, int root, struct err *err);

/*
 * A terminal of the devpts at dev/pts below `root`, its slave given to the program's user: into the stdio. The
 * descriptors are the caller's.
 */
int terminal_open(const struct program *program, int root, struct stdio *stdio, struct err *err);
/* /dev/console of a container with a terminal is that terminal. */
int terminal_console(int root, const struct stdio *stdio, struct err *err);

/* What is needed to restrict those of most containers; `cgroup` is restricted first. */
int devices_prepare(int cgroup, struct err *err);
/*
 * From now on processes of the cgroup can open the devices that every container has and those of DEVICE, and make, but
 * not open, the nodes of others: a disk of another container's is none of theirs.
 */
int devices_restrict(int cgroup, const struct fields *request, struct err *err);
