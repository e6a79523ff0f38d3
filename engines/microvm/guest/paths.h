/* Paths inside a container, walked so that nothing in it leads out of its root. */
#pragma once

#include <stdbool.h>

#include "agent.h"

enum path_kind {
	PATH_ANY,	/* whatever is there */
	PATH_DIRECTORY, /* made, with its parents, where it is missing */
	PATH_FILE,	/* made, empty, with its parents, where it is missing */
};

/*
 * An O_PATH descriptor of what `path` names below `root`, its symlinks read as from that root; -1 and errno.
 *
 * Each step is opened anew from the root with no symlink allowed in it, so what is exchanged for one meanwhile ends the
 * walk (ELOOP) and leads nowhere. What is missing is made below a directory found in this way, 0755 and 0644.
 */
int path_open(int root, const char *path, enum path_kind kind);

/* Likewise, of a path in which no symlink may be. */
int path_open_plain(int root, const char *path, int flags);

/* Reads at most `size` bytes of the file at `path` below `dir` into `data`: how many, or -1 and errno. */
ssize_t path_read(int dir, const char *path, void *data, size_t size);
