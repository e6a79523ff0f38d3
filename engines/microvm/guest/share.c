/*
 * Carries FUSE messages between the kernel and the host, whole and unread: one process takes requests to the port, one
 * takes answers from it, so that neither way ever waits for the other. They are no part of the agent's process: an
 * access to a volume may wait for the host, and the agent may not.
 *
 * A message without a number of a request's is no answer: with it the host asks that the kernel forget inodes that
 * nobody uses, each of which costs the host a descriptor. A third process does that, since it can take a while.
 */
#include "share.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "calls.h"

/* linux/fuse.h */
#define FUSE_INIT 26u
#define FUSE_MAJOR 7u
/* Of Linux 5.17, whose flags are all that is asked for. */
#define FUSE_MINOR 36u
#define FUSE_ASYNC_READ (1u << 0)
#define FUSE_ATOMIC_O_TRUNC (1u << 3)
#define FUSE_BIG_WRITES (1u << 5)
#define FUSE_AUTO_INVAL_DATA (1u << 12)
#define FUSE_DO_READDIRPLUS (1u << 13)
#define FUSE_READDIRPLUS_AUTO (1u << 14)
#define FUSE_ASYNC_DIO (1u << 15)
#define FUSE_PARALLEL_DIROPS (1u << 18)
#define FUSE_MAX_PAGES (1u << 22)
#define FUSE_CACHE_SYMLINKS (1u << 23)
#define FUSE_HANDLE_KILLPRIV_V2 (1u << 28)

#define MAX_WRITE (1u << 20)
#define PAGE 4096u
#define MAX_PAGES (MAX_WRITE / PAGE)
/* The kernel wants this much room for any request. */
#define BUFFER_SIZE (MAX_WRITE + PAGE)
/* Requests that nobody waits for, such as of reading ahead, on their way at once. */
#define MAX_BACKGROUND 32u
#define K_PR_SET_IO_FLUSHER 57

static const uint32_t wanted = FUSE_ASYNC_READ | FUSE_ATOMIC_O_TRUNC | FUSE_BIG_WRITES | FUSE_AUTO_INVAL_DATA |
			       FUSE_DO_READDIRPLUS | FUSE_READDIRPLUS_AUTO | FUSE_ASYNC_DIO | FUSE_PARALLEL_DIROPS |
			       FUSE_MAX_PAGES | FUSE_CACHE_SYMLINKS | FUSE_HANDLE_KILLPRIV_V2;

struct in_header {
	uint32_t length, opcode;
	uint64_t unique, node;
	uint32_t uid, gid, pid, extensions;
};

struct init_in {
	struct in_header header;
	uint32_t major, minor, max_readahead, flags;
};

struct out_header {
	uint32_t length;
	int32_t error;
	uint64_t unique;
};

struct init_out {
	struct out_header header;
	uint32_t major, minor, max_readahead, flags;
	uint16_t max_background, congestion_threshold;
	uint32_t max_write, time_granularity;
	uint16_t max_pages, map_alignment;
	uint32_t unused[8];
};

struct carrier {
	int fuse, port, please;
};

static unsigned char buffer[BUFFER_SIZE];

static ssize_t write_retried(int fd, const void *data, size_t size)
{
	ssize_t put;
	do
		put = write(fd, data, size);
	while (put < 0 && errno == EINTR);
	return put;
}

/* ---- requests ---- */

static bool send_all(int port, const unsigned char *data, size_t size)
{
	while (size) {
		ssize_t put = write_retried(port, data, size);
		if (put <= 0)
			return false;
		data += put;
		size -= (size_t)put;
	}
	return true;
}

static void carry_requests(const struct carrier *carrier)
{
	for (;;) {
		ssize_t got = read(carrier->fuse, buffer, sizeof buffer);
		/* ENOENT: whoever asked has been interrupted. ENODEV: it is unmounted. */
		if (got < 0 && (errno == EINTR || errno == ENOENT || errno == EAGAIN))
			continue;
		if (got <= 0 || !send_all(carrier->port, buffer, (size_t)got))
			return;
	}
}

/* ---- answers ---- */

/* One whole message; false: the mount is gone, or it is none. */
static bool carry_answer(const struct carrier *carrier, const unsigned char *data, const struct out_header *header)
{
	if (header->unique == 0) {
		/* A pipe that is full asks already. */
		(void)!write_retried(carrier->please, "", 1);
		return true;
	}
	/* ENOENT: nobody waits for it any more. EINVAL: it does not fit the request, which fails with it. */
	return write_retried(carrier->fuse, data, header->length) >= 0 || errno != ENODEV;
}

/* The messages at the beginning of the buffer; returns how much of it they were, or -1. */
static ssize_t carry_answers(const struct carrier *carrier, size_t filled)
{
	size_t at = 0;
	struct out_header header;
	while (filled - at >= sizeof header) {
		memcpy(&header, buffer + at, sizeof header);
		if (header.length < sizeof header || header.length > sizeof buffer)
			return -1;
		if (filled - at < header.length)
			break;
		if (!carry_answer(carrier, buffer + at, &header))
			return -1;
		at += header.length;
	}
	return (ssize_t)at;
}

static void carry_all_answers(const struct carrier *carrier)
{
	/* To wait for the host where a read does not: while it is not there. */
	int wakes = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event event = {.events = EPOLLIN | EPOLLET};
	struct stat found;
	if (wakes < 0 || epoll_ctl(wakes, EPOLL_CTL_ADD, carrier->port, &event) < 0 || fstat(carrier->port, &found) < 0)
		return;
	size_t filled = 0;
	for (;;) {
		ssize_t got = read(carrier->port, buffer + filled, sizeof buffer - filled);
		if (got < 0 && errno == EINTR)
			continue;
		if (got == 0 && !S_ISSOCK(found.st_mode)) {
			epoll_wait(wakes, &event, 1, -1);
			continue;
		}
		if (got <= 0)
			return;
		filled += (size_t)got;
		ssize_t done = carry_answers(carrier, filled);
		if (done < 0)
			return;
		filled -= (size_t)done;
		if (done)
			memmove(buffer, buffer + done, filled);
	}
}

/* ---- forgetting ---- */

static void forget_when_asked(int asked, int caches)
{
	char words[64];
	while (read(asked, words, sizeof words) > 0)
		(void)!write_retried(caches, "2", 1);
}

/* ---- the beginning ---- */

static int say_no(const char **step, const char *what)
{
	*step = what;
	return -1;
}

static int answer_init(int fuse, const char **step)
{
	struct init_in in;
	ssize_t got = read(fuse, buffer, sizeof buffer);
	if (got < 0)
		return say_no(step, "read FUSE_INIT");
	memcpy(&in, buffer, sizeof in);
	if ((size_t)got < sizeof in || in.header.opcode != FUSE_INIT || in.major != FUSE_MAJOR) {
		errno = EPROTO;
		return say_no(step, "agree on FUSE's version");
	}
	struct init_out out = {
		.header = {.length = sizeof out, .unique = in.header.unique},
		.major = FUSE_MAJOR,
		.minor = FUSE_MINOR,
		.max_readahead = in.max_readahead < MAX_WRITE ? in.max_readahead : MAX_WRITE,
		.flags = in.flags & wanted,
		.max_background = MAX_BACKGROUND,
		.congestion_threshold = MAX_BACKGROUND * 3 / 4,
		.max_write = MAX_WRITE,
		.time_granularity = 1,
		.max_pages = MAX_PAGES,
	};
	return write_retried(fuse, &out, sizeof out) < 0 ? say_no(step, "answer FUSE_INIT") : 0;
}

static int mount_share(int fuse, const char *point, const char **step)
{
	char options[160];
	if (mkdir(point, 0755) < 0 && errno != EEXIST)
		return say_no(step, "make the share's directory");
	snprintf(options, sizeof options,
		 "fd=%d,rootmode=40755,user_id=0,group_id=0,default_permissions,allow_other,max_read=%u", fuse,
		 MAX_WRITE);
	if (mount("forgeone", point, "fuse", 0, options) < 0)
		return say_no(step, "mount the share");
	if (answer_init(fuse, step) < 0) {
		int code = errno;
		umount2(point, MNT_DETACH);
		errno = code;
		return -1;
	}
	return 0;
}

/* ---- processes ---- */

/* One of the three, with these descriptors and no others. */
static void be(const char *name, int first, int second, int third)
{
	sigset_t none;
	sigemptyset(&none);
	for (int signo = 1; signo < NSIG; signo++)
		signal(signo, SIG_DFL);
	signal(SIGPIPE, SIG_IGN);
	sigprocmask(SIG_SETMASK, &none, NULL);
	prctl(PR_SET_NAME, name);
	/* What it needs memory for may be what frees some. */
	prctl(K_PR_SET_IO_FLUSHER, 1, 0, 0, 0);
	unsigned past = 0;
	int keep[] = {first, second, third};
	for (size_t index = 0; index < sizeof keep / sizeof *keep; index++) {
		if ((unsigned)keep[index] > past)
			sys_close_range(past, (unsigned)keep[index] - 1);
		past = (unsigned)keep[index] + 1;
	}
	sys_close_range(past, ~0u);
}

static void end_with_child(int signo)
{
	(void)signo;
	_exit(1);
}

/* A child that dies with this process; in it, 0. */
static pid_t fork_helper(void)
{
	pid_t parent = getpid(), pid = fork();
	if (pid == 0 && (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || getppid() != parent))
		_exit(1);
	return pid;
}

/* The descriptors are in ascending order: fuse, port, the two ends of the pipe. */
static void carry(const int *fds, int caches)
{
	struct carrier carrier = {.fuse = fds[0], .port = fds[1], .please = fds[3]};
	pid_t pid = fork_helper();
	if (pid == 0) {
		be("share-forget", fds[2], caches, caches);
		forget_when_asked(fds[2], caches);
		_exit(0);
	}
	if (pid > 0)
		pid = fork_helper();
	if (pid == 0) {
		be("share-answers", fds[0], fds[1], fds[3]);
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		carry_all_answers(&carrier);
		_exit(0);
	}
	if (pid < 0)
		return;
	be("share", fds[0], fds[1], fds[1]);
	signal(SIGCHLD, end_with_child);
	carry_requests(&carrier);
}

/* Duplicates whose numbers are in the order given. */
static int sort(const int *fds, size_t count, int *sorted)
{
	for (size_t index = 0; index < count; index++) {
		sorted[index] = fcntl(fds[index], F_DUPFD_CLOEXEC, index ? sorted[index - 1] + 1 : 3);
		if (sorted[index] < 0)
			return -1;
	}
	return 0;
}

pid_t share_carry(int port, const char *point, const char *caches, const char **step)
{
	int fds[5] = {-1, port, -1, -1, -1}, sorted[5];
	pid_t pid = -1;
	if ((fds[0] = open("/dev/fuse", O_RDWR | O_CLOEXEC)) < 0)
		return say_no(step, "open /dev/fuse");
	if (pipe2(fds + 2, O_CLOEXEC) < 0 || fcntl(fds[3], F_SETFL, O_NONBLOCK) < 0)
		*step = "make the share's pipe";
	else if ((fds[4] = open(caches, O_WRONLY | O_CLOEXEC)) < 0)
		*step = caches;
	else if (mount_share(fds[0], point, step) == 0) {
		*step = "start the share";
		pid = fork();
		if (pid == 0) {
			if (sort(fds, 5, sorted) == 0)
				carry(sorted, sorted[4]);
			_exit(1);
		}
		if (pid < 0)
			umount2(point, MNT_DETACH);
	}
	int code = errno;
	for (size_t index = 0; index < 5; index++)
		if (fds[index] >= 0 && fds[index] != port)
			close(fds[index]);
	errno = code;
	return pid;
}

pid_t share_start(const char *port, const char **step)
{
	int fd = open(port, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return say_no(step, "open the share's port");
	pid_t pid = share_carry(fd, SHARE_POINT, "/proc/sys/vm/drop_caches", step);
	int code = errno;
	close(fd);
	errno = code;
	return pid;
}
