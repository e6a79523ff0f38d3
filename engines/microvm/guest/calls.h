/* The system calls that a C library has no function for; as functions of one do, they answer -1 and set errno. */
#pragma once

#include <unistd.h>

#include "kernel.h"

static inline int sys_openat2(int dir, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve)
{
	struct k_open_how how = {.flags = flags, .mode = mode, .resolve = resolve};
	return (int)syscall(FO_SYS_openat2, dir, path, &how, sizeof how);
}

static inline int sys_open_tree(int dir, const char *path, unsigned flags)
{
	return (int)syscall(FO_SYS_open_tree, dir, path, flags);
}

static inline int sys_move_mount(int from, const char *source, int to, const char *target, unsigned flags)
{
	return (int)syscall(FO_SYS_move_mount, from, source, to, target, flags);
}

static inline int sys_fsopen(const char *type)
{
	return (int)syscall(FO_SYS_fsopen, type, K_FSOPEN_CLOEXEC);
}

static inline int sys_fsconfig(int fs, unsigned command, const char *key, const char *value)
{
	return (int)syscall(FO_SYS_fsconfig, fs, command, key, value, 0);
}

static inline int sys_fsmount(int fs, uint64_t attributes)
{
	return (int)syscall(FO_SYS_fsmount, fs, K_FSMOUNT_CLOEXEC, (unsigned)attributes);
}

static inline int sys_mount_setattr(int dir, const char *path, unsigned flags, struct k_mount_attr *attr)
{
	return (int)syscall(FO_SYS_mount_setattr, dir, path, flags, attr, sizeof *attr);
}

static inline int sys_pidfd_open(pid_t pid)
{
	return (int)syscall(FO_SYS_pidfd_open, pid, 0);
}

/* As fork(2) does: the child goes on where its parent is. */
static inline pid_t sys_clone3(struct k_clone_args *args)
{
	return (pid_t)syscall(FO_SYS_clone3, args, sizeof *args);
}

static inline int sys_close_range(unsigned first, unsigned last)
{
	return (int)syscall(FO_SYS_close_range, first, last, 0);
}

static inline int sys_pivot_root(const char *root, const char *old)
{
	return (int)syscall(SYS_pivot_root, root, old);
}
