/* A container's root: an image that cannot be written to, and a layer over it that can. */
#pragma once

#include "agent.h"

/*
 * Mounts both below STAGE, in a mount namespace of the caller's own. The descriptors are the caller's: of the root, and
 * (O_PATH) of the file system that the layer is in.
 */
int rootfs_make(const struct fields *request, int *root, int *layer, struct err *err);

/* The caller's root is this one, and nothing of what was before is left in its mount namespace. */
int rootfs_enter(int root, struct err *err);
