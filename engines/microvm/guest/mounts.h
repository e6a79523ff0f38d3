/* A container's mounts. All this is done by its first process, in a mount namespace of its own, before the pivot. */
#pragma once

#include "agent.h"

/* Where that process puts its container together. */
#define STAGE "/run/stage"

/* A new file system, not attached anywhere; `options` as in mount(8), NULL: none; `flags` of mount(2). */
int fs_new(const char *type, const char *source, const char *options, uint64_t flags, struct err *err);

/* A copy of the mount that `path` (relative to `from`; "": itself) is on, from there on down, not attached anywhere. */
int fs_clone(int from, const char *path, struct err *err);

/* Moves `tree` to the path `destination` below `root`, made if it is missing; closes `tree`. */
int fs_attach(int tree, int root, const char *destination, bool directory, struct err *err);

/* What is mounted at `tree` itself (with MS_REC: and below it) becomes as the flags of mount(2) say. */
int fs_restrict(int tree, uint64_t flags, struct err *err);

/* Everything in MOUNT, in its order. */
int mounts_make(const struct fields *request, int root, struct err *err);
/* Whether one of MOUNT has this destination. */
bool mounts_have(const struct fields *request, const char *destination);

/* The boot's id in the container's /proc is the pod's; then MASKED and READONLY_PATH. */
int mounts_hide(const struct fields *request, int root, struct err *err);
