#include "namespaces.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "calls.h"

static int shared = -1;

int namespace_of(pid_t pid, const char *name, struct err *err)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/ns/%s", (int)pid, name);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd < 0 ? fail(err, errno, "open a namespace", "%s: %s", path, strerror(errno)) : fd;
}

pid_t namespaces_fork(uint64_t flags, int pids, int cgroup, struct err *err)
{
	struct k_clone_args args = {.flags = flags, .exit_signal = SIGCHLD};
	int own = -1;
	if (cgroup >= 0) {
		args.flags |= K_CLONE_INTO_CGROUP;
		args.cgroup = (uint64_t)cgroup;
	}
	if (pids >= 0) {
		own = namespace_of(getpid(), "pid", err);
		if (own < 0)
			return -1;
		/* That of the children, until they are told otherwise below. */
		if (setns(pids, CLONE_NEWPID) < 0) {
			fail_errno(err, "enter the PID namespace");
			close(own);
			return -1;
		}
	}
	pid_t pid = sys_clone3(&args);
	int error = errno;
	if (pid != 0 && own >= 0) {
		/* Every child to come would be born in the container's. */
		if (setns(own, CLONE_NEWPID) < 0)
			abort();
		close(own);
	}
	return pid < 0 ? fail(err, error, "fork", "%s", strerror(error)) : pid;
}

static int ascending(const void *left, const void *right)
{
	return *(const int *)left - *(const int *)right;
}

void namespaces_child(const int *keep, size_t count, int oom_score_adj)
{
	char score[16];
	/* What is opened from here on is never taken for one of the standard streams. */
	int sorted[16], last = 2, size = snprintf(score, sizeof score, "%d", oom_score_adj);
	size_t used = 0;
	child_signals();
	prctl(PR_SET_DUMPABLE, 0);
	for (size_t index = 0; index < count && used < sizeof sorted / sizeof *sorted; index++)
		if (keep[index] > last)
			sorted[used++] = keep[index];
	qsort(sorted, used, sizeof *sorted, ascending);
	for (size_t index = 0; index < used; last = sorted[index++])
		if (sorted[index] > last + 1)
			sys_close_range((unsigned)last + 1, (unsigned)sorted[index] - 1);
	sys_close_range((unsigned)last + 1, UINT_MAX);
	/* By the agent's /proc, which is what it says. */
	file_put(AT_FDCWD, "/proc/self/oom_score_adj", score, (size_t)size);
	umask(0);
}

/* ---- the pod's ------------------------------------------------------------------------------------------------- */

/* It sees nothing of the machine, can do nothing in it, and has nothing to do but reap. */
static _Noreturn void reaper(void)
{
	static const struct k_cap_data none[2];
	struct k_cap_header header = {.version = K_CAPABILITY_VERSION_3};
	sigset_t all;
	namespaces_child(NULL, 0, -1000);
	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, NULL);
	prctl(PR_SET_NAME, "pause");
	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mount("none", "/run", "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=4k,nr_inodes=1") < 0 ||
	    chdir("/run") < 0 || sys_pivot_root(".", ".") < 0 || umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
		_exit(1);
	for (unsigned long cap = 0; prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) == 0; cap++)
		;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || syscall(SYS_capset, &header, none) < 0)
		_exit(1);
	/* As kill(2) says of a namespace's first process, nothing in it can end this one. */
	for (;;)
		if (waitpid(-1, NULL, 0) < 0)
			sigwaitinfo(&all, NULL);
}

int pids_share(struct err *err)
{
	if (shared >= 0)
		return 0;
	pid_t pid = namespaces_fork(CLONE_NEWPID | CLONE_NEWNS, -1, -1, err);
	if (pid == 0)
		reaper();
	if (pid < 0)
		return -1;
	shared = namespace_of(pid, "pid", err);
	return shared < 0 ? -1 : 0;
}

int pids_shared(void)
{
	return shared;
}
