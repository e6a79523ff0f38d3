/* From the fork to the program. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "calls.h"
#include "container.h"
#include "devices.h"
#include "lookup.h"
#include "mounts.h"
#include "namespaces.h"
#include "paths.h"
#include "rootfs.h"

#define KEYCTL_JOIN_SESSION_KEYRING 1

/* Of one that was killed. */
#define GONE_MS 500
#define HANDED_MAX 2

/* The child's ends, and ours. */
struct channels {
	int hold[2], report[2], handover[2];
};

/* ---- the child ------------------------------------------------------------------------------------------------- */

/* The layer first, then a terminal's master; one message. */
static int hand_over(int to, int layer, int terminal, struct err *err)
{
	int fds[HANDED_MAX], count = 0;
	char what = (char)((layer >= 0) | (terminal >= 0) << 1);
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof fds)];
	} control;
	struct iovec bytes = {.iov_base = &what, .iov_len = 1};
	if (layer >= 0)
		fds[count++] = layer;
	if (terminal >= 0)
		fds[count++] = terminal;
	if (!count)
		return 0;
	memset(&control, 0, sizeof control);
	struct msghdr message = {.msg_iov = &bytes,
				 .msg_iovlen = 1,
				 .msg_control = control.room,
				 .msg_controllen = CMSG_SPACE((size_t)count * sizeof *fds)};
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN((size_t)count * sizeof *fds);
	memcpy(CMSG_DATA(header), fds, (size_t)count * sizeof *fds);
	return sendmsg(to, &message, MSG_NOSIGNAL) == 1 ? 0 : fail_errno(err, "hand over descriptors");
}

/* What other runtimes do for a working directory that is not there. */
static int make_cwd(const char *cwd, int root, struct err *err)
{
	int fd = path_open(root, cwd, PATH_DIRECTORY);
	if (fd < 0) {
		fail(err, errno, "make the working directory", "%s: %s", cwd, strerror(errno));
		return fail_field(err, "working_dir");
	}
	close(fd);
	return 0;
}

/* Keys of the container's are not the agent's, and not another container's. */
static int join_keyring(const char *id, struct err *err)
{
	if (syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, id) < 0 && errno != ENOSYS)
		return fail_errno(err, "join the session keyring");
	return 0;
}

/* A root, and everything in it. */
static int make(const struct birth *birth, struct stdio *stdio, int *layer, struct err *err)
{
	const struct fields *request = birth->request;
	struct fields rootfs = fields_group(request, T_ROOTFS);
	int root = -1;
	/* The child is in its cgroup: that is the root of what it sees. */
	if (unshare((int)K_CLONE_NEWCGROUP) < 0)
		return fail_errno(err, "make a cgroup namespace");
	if (rootfs_make(request, &root, layer, err) < 0 || devices_mount(request, root, err) < 0 ||
	    mounts_make(request, root, err) < 0 || devices_make(request, root, err) < 0 ||
	    make_cwd(birth->program->cwd, root, err) < 0)
		return -1;
	if (birth->program->tty &&
	    (terminal_open(birth->program, root, stdio, err) < 0 || terminal_console(root, stdio, err) < 0))
		return -1;
	if (mounts_hide(request, root, err) < 0)
		return -1;
	if (fields_bool(&rootfs, T_READONLY) && fs_restrict(root, MS_RDONLY, err) < 0)
		return -1;
	if (rootfs_enter(root, err) < 0)
		return -1;
	close(root);
	return 0;
}

/* The root of a container that there is. */
static int join(const struct birth *birth, struct stdio *stdio, struct err *err)
{
	if (setns(birth->first, CLONE_NEWNS | CLONE_NEWIPC | (int)K_CLONE_NEWCGROUP) < 0)
		return fail_errno(err, "enter the container");
	close(birth->first);
	if (!birth->program->tty)
		return 0;
	int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
	int result = root < 0 ? fail_errno(err, "open the root") : terminal_open(birth->program, root, stdio, err);
	if (root >= 0)
		close(root);
	return result;
}

static int prepare(const struct birth *birth, struct stdio *stdio, int handover, char *path, struct err *err)
{
	int layer = -1;
	if (join_keyring(birth->id, err) < 0 ||
	    (birth->request ? make(birth, stdio, &layer, err) : join(birth, stdio, err)) < 0 ||
	    hand_over(handover, layer, stdio->terminal, err) < 0)
		return -1;
	close(handover);
	if (layer >= 0)
		close(layer);
	if (stdio->terminal >= 0)
		close(stdio->terminal);
	stdio->terminal = -1;
	return lookup_program(birth->program, path, err);
}

static _Noreturn void child(const struct birth *birth, const struct channels *channels)
{
	const struct program *program = birth->program;
	struct stdio stdio = *birth->stdio;
	int hold = channels->hold[0], report = channels->report[1], handover = channels->handover[1];
	int keep[] = {stdio.in, stdio.out, stdio.err, hold, report, handover, birth->first, birth->door};
	char path[PATH_MAX];
	struct err err = {0};
	stdio.terminal = -1;
	namespaces_child(keep, sizeof keep / sizeof *keep, program->has_oom_score_adj ? program->oom_score_adj : 0);
	if (prepare(birth, &stdio, handover, path, &err) == 0)
		child_become(program, path, &stdio, birth->door, hold, report);
	_exit(write(report, &err, sizeof err) < 0 ? 2 : 1);
}

/* ---- its parent ------------------------------------------------------------------------------------------------ */

static int receive(int from, int *layer, int *terminal, struct err *err)
{
	int fds[HANDED_MAX], *slots[HANDED_MAX] = {layer, terminal}, count = 0;
	char what = 0;
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof fds)];
	} control;
	struct iovec bytes = {.iov_base = &what, .iov_len = 1};
	struct msghdr message = {
		.msg_iov = &bytes, .msg_iovlen = 1, .msg_control = control.room, .msg_controllen = sizeof control.room};
	ssize_t size = recvmsg(from, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (size < 0)
		return errno == EAGAIN ? 0 : fail_errno(err, "take descriptors over");
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	if (!size || !header || header->cmsg_type != SCM_RIGHTS)
		return 0;
	memcpy(fds, CMSG_DATA(header), header->cmsg_len - CMSG_LEN(0));
	for (int index = 0; index < HANDED_MAX; index++)
		if (what & 1 << index)
			*slots[index] = fds[count++];
	return 0;
}

/* Reads what the child has to report: 0, nothing. */
static int hear(int report, struct err *err)
{
	struct err theirs;
	ssize_t size = read(report, &theirs, sizeof theirs);
	if (size == 0)
		return 0;
	if (size != (ssize_t)sizeof theirs)
		return fail(err, EPROTO, "wait for the process", "%zd bytes are no error", size);
	*err = theirs;
	err->step[sizeof err->step - 1] = err->message[sizeof err->message - 1] = err->field[sizeof err->field - 1] = 0;
	return -1;
}

/* Waits for a child's end; false: not within the time. */
static bool reaped(pid_t pid, int milliseconds)
{
	int fd = sys_pidfd_open(pid);
	struct pollfd wait = {.fd = fd, .events = POLLIN};
	bool over = fd >= 0 && poll(&wait, 1, milliseconds) > 0;
	if (fd >= 0)
		close(fd);
	return over && waitpid(pid, NULL, WNOHANG) == pid;
}

static void close_one(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static int open_channels(struct channels *channels, bool held, struct err *err)
{
	if ((held && pipe2(channels->hold, O_CLOEXEC) < 0) || pipe2(channels->report, O_CLOEXEC) < 0 ||
	    socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, channels->handover) < 0)
		return fail_errno(err, "make channels to a process");
	return 0;
}

static int keep(int *fd)
{
	int kept = *fd;
	*fd = -1;
	return kept;
}

int birth_begin(struct birth *birth, struct err *err)
{
	struct channels channels = {{-1, -1}, {-1, -1}, {-1, -1}};
	birth->hold = birth->layer = birth->handover = birth->unborn.word = -1;
	pid_t pid = open_channels(&channels, birth->request, err) < 0
			    ? -1
			    : namespaces_fork(birth->namespaces, birth->pids, birth->cgroup, err);
	if (pid == 0)
		child(birth, &channels);
	if (pid > 0) {
		birth->unborn.pid = pid;
		birth->unborn.word = keep(&channels.report[0]);
		birth->hold = keep(&channels.hold[1]);
		birth->handover = keep(&channels.handover[0]);
	}
	for (int end = 0; end < 2; end++) {
		close_one(&channels.hold[end]);
		close_one(&channels.report[end]);
		close_one(&channels.handover[end]);
	}
	return pid < 0 ? -1 : 0;
}

int birth_end(struct birth *birth, int why, int *terminal, struct err *err)
{
	int result = why ? fail(err, why, "wait for the process", "%s",
				why == ETIMEDOUT ? "it was not ready in time" : "the container has ended")
			 : hear(birth->unborn.word, err);
	if (result == 0)
		result = receive(birth->handover, &birth->layer, terminal, err);
	close_one(&birth->unborn.word);
	close_one(&birth->handover);
	if (result < 0) {
		kill(birth->unborn.pid, SIGKILL);
		/* One that hangs in the kernel is the core's to reap, whenever it ends: it has been waited for enough. */
		if (why != ETIMEDOUT)
			reaped(birth->unborn.pid, GONE_MS);
	}
	return result;
}
