/* The last steps of a process before its program. */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent.h"
#include "kernel.h"

#define CAPS_MAX 64
#define FIRST_FREE 3
/* As shells and other runtimes have it. */
#define EXIT_CANNOT 126
#define EXIT_MISSING 127

static int limit(const struct program *program, struct err *err)
{
	for (size_t index = 0; index < program->limit_count; index++)
		if (setrlimit(program->limits[index].resource, &program->limits[index].value) < 0)
			return fail_errno(err, "set a limit");
	umask(program->umask);
	return 0;
}

/* Each onto its number, without one of them landing on another that is still to be moved. */
static int take_stdio(const struct program *program, const struct stdio *stdio, struct err *err)
{
	int streams[FIRST_FREE] = {stdio->in, stdio->out, stdio->err};
	for (int number = 0; number < FIRST_FREE; number++)
		if (streams[number] >= 0 && streams[number] < FIRST_FREE) {
			streams[number] = fcntl(streams[number], F_DUPFD_CLOEXEC, FIRST_FREE);
			if (streams[number] < 0)
				return fail_errno(err, "set up the streams");
		}
	for (int number = 0; number < FIRST_FREE; number++)
		if (dup2(streams[number], number) < 0)
			return fail_errno(err, "set up the streams");
	setsid();
	if (program->tty && ioctl(0, TIOCSCTTY, 0) < 0)
		return fail_errno(err, "take the terminal");
	return 0;
}

/* One that is not below the root, as another container's by way of /proc, has no path. */
static int enter_directory(const char *path, struct err *err)
{
	char found[PATH_MAX];
	if (chdir(path) == 0 && getcwd(found, sizeof found))
		return 0;
	fail(err, errno, "change the directory", "%s: %s", path, strerror(errno));
	return fail_field(err, "working_dir");
}

static int bound(uint64_t kept, struct err *err)
{
	for (int one = 0; one < CAPS_MAX; one++)
		if (!(kept >> one & 1) && prctl(PR_CAPBSET_DROP, one, 0, 0, 0) < 0) {
			/* One past the last that this kernel has. */
			if (errno == EINVAL && one)
				return 0;
			return fail_errno(err, "drop a capability");
		}
	return 0;
}

static int hold_capabilities(const struct program *program, struct err *err)
{
	struct k_cap_header header = {.version = K_CAPABILITY_VERSION_3};
	struct k_cap_data sets[2];
	for (int half = 0; half < 2; half++) {
		sets[half].effective = (uint32_t)(program->caps.effective >> 32 * half);
		sets[half].permitted = (uint32_t)(program->caps.permitted >> 32 * half);
		sets[half].inheritable = (uint32_t)(program->caps.inheritable >> 32 * half);
	}
	if (syscall(SYS_capset, &header, sets) < 0)
		return fail_errno(err, "set the capabilities");
	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0)
		return fail_errno(err, "clear ambient capabilities");
	for (int one = 0; one < CAPS_MAX; one++)
		if (program->caps.ambient >> one & 1 && prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, one, 0, 0) < 0)
			return fail_errno(err, "raise an ambient capability");
	return 0;
}

static int filter(const struct program *program, struct err *err)
{
	struct sock_fprog filter = {.len = program->seccomp_count, .filter = program->seccomp};
	if (program->seccomp &&
	    syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, program->seccomp_flags, &filter) < 0)
		return fail_errno(err, "filter system calls");
	return 0;
}

static int become(const struct program *program, const struct stdio *stdio, struct err *err)
{
	struct err unseen;
	if (limit(program, err) < 0 || take_stdio(program, stdio, err) < 0)
		return -1;
	/* What root may not enter, as a volume of somebody else's, its user may. */
	int inside = enter_directory(program->cwd, program->uid ? &unseen : err);
	if (inside < 0 && !program->uid)
		return -1;
	if (setgroups(program->group_count, program->groups) < 0)
		return fail_errno(err, "set the groups");
	if (bound(program->caps.bounding, err) < 0)
		return -1;
	if (prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) < 0)
		return fail_errno(err, "keep capabilities");
	if (setresgid(program->gid, program->gid, program->gid) < 0)
		return fail_errno(err, "set the group");
	/* Without no_new_privs it takes a capability that the user may not have. */
	if (!program->no_new_privs && filter(program, err) < 0)
		return -1;
	if (setresuid(program->uid, program->uid, program->uid) < 0)
		return fail_errno(err, "set the user");
	if (inside < 0 && enter_directory(program->cwd, err) < 0)
		return -1;
	if (hold_capabilities(program, err) < 0)
		return -1;
	if (!program->no_new_privs)
		return 0;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return fail_errno(err, "set no_new_privs");
	return filter(program, err);
}

/* Until a byte comes; nobody is there any more who could send one: the end. */
static void await_start(int hold)
{
	char byte;
	ssize_t size;
	while ((size = read(hold, &byte, 1)) < 0 && errno == EINTR)
		;
	if (size != 1)
		_exit(EXIT_CANNOT);
	close(hold);
}

/* With the rights of who has opened it. */
static int enter_cgroup(int door, struct err *err)
{
	if (door >= 0 && write(door, "0", 1) != 1)
		return fail_errno(err, "enter the cgroup");
	return 0;
}

_Noreturn void child_become(const struct program *program, const char *path, struct stdio *stdio, int door, int hold,
			    int report)
{
	struct err err = {0};
	if (become(program, stdio, &err) == 0 && enter_cgroup(door, &err) == 0) {
		if (hold >= 0) {
			close(report);
			report = -1;
			await_start(hold);
		}
		execve(path, program->args, program->env);
		fail(&err, errno, "execute", "exec %s: %s", path, strerror(errno));
		fail_field(&err, "command");
	}
	if (report >= 0) {
		if (write(report, &err, sizeof err) != (ssize_t)sizeof err)
			_exit(EXIT_CANNOT);
	} else {
		dprintf(STDERR_FILENO, "%s\n", err.message);
	}
	_exit(err.number == ENOENT ? EXIT_MISSING : EXIT_CANNOT);
}
