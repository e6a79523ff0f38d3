/* The host's volumes in the guest: one FUSE mount, whose requests travel over a virtio-serial port. */
#pragma once

#include <sys/types.h>

#define SHARE_POINT "/run/share"
#define SHARE_CACHES "/proc/sys/vm/drop_caches"

/*
 * Mount SHARE_POINT (made if it is missing) and start the processes that carry messages between /dev/fuse and the port.
 * When this returns the mount lives: the kernel's FUSE_INIT has been answered here, with fixed parameters, so that a
 * machine saved from now on needs nothing of its host until a volume is looked at.
 *
 * port: path of the port (/dev/vportNpM). Its name is FO_SHARE_PORT.
 * Returns the process to wait for, whose end is the end of the mount (every access is ENOTCONN then), or -1 with errno
 * set and *step naming what failed. It is never killed for memory, and has no descriptor but its own.
 */
pid_t share_start(const char *port, const char **step);

/*
 * The same for an open port, or a socket, which stays the caller's, and for any place. "2" is written into the file
 * `caches` when the kernel is to forget inodes (sysctl vm.drop_caches).
 */
pid_t share_carry(int port, const char *point, const char *caches, const char **step);
