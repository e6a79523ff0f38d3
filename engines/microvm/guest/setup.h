/* What is the pod's and not a container's. */
#pragma once

#include "agent.h"

/* Made at SETUP. */
#define POD_SHM "/run/pod/shm"
#define POD_BOOT_ID "/run/pod/boot_id"
#define POD_DIRECTORIES "/run/pod/directories"

/*
 * The pod's directory of this name, made at its first use: a file system in memory with these options (NULL: none), its
 * root with this mode (0: 0777). An O_PATH descriptor, or -1 with *err.
 */
int pod_directory(const char *name, const char *options, mode_t mode, struct err *err);
