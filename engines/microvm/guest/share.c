/*
 * Carries FUSE messages between the kernel and the host, whole and unread: one thread takes requests to the port, one
 * takes answers from it, so that neither way ever waits for the other. They are no part of the agent's process: an
 * access to a volume may wait for the host, and the agent may not. They are one process, as each change from one
 * memory to another is dear where instructions are emulated.
 *
 * A message without a number of a request's is no answer: with it the host asks that the kernel forget inodes that
 * nobody uses, each of which costs the host a descriptor. A third thread does that, since it can take a while.
 */
#include "share.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
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
#define READ_AHEAD_KB "1024"
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

/* What the threads have, from before there are any; they ask the third by a pipe. */
enum { FUSE, PORT, CACHES, ASKED, ASK, FDS };
static int fds[FDS];

static unsigned char requests[BUFFER_SIZE], answers[BUFFER_SIZE];

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

/* In the end the other way ends, too. */
static void *carry_requests(void *nothing)
{
	(void)nothing;
	for (;;) {
		ssize_t got = read(fds[FUSE], requests, sizeof requests);
		/* ENOENT: whoever asked has been interrupted. ENODEV: it is unmounted. */
		if (got < 0 && (errno == EINTR || errno == ENOENT || errno == EAGAIN))
			continue;
		if (got <= 0 || !send_all(fds[PORT], requests, (size_t)got))
			_exit(1);
	}
}

/* ---- answers ---- */

/* One whole message; false: the mount is gone, or it is none. */
static bool carry_answer(const unsigned char *data, const struct out_header *header)
{
	if (header->unique == 0) {
		/* A pipe that is full asks already. */
		(void)!write_retried(fds[ASK], "", 1);
		return true;
	}
	/* ENOENT: nobody waits for it any more. EINVAL: it does not fit the request, which fails with it. */
	return write_retried(fds[FUSE], data, header->length) >= 0 || errno != ENODEV;
}

/* The messages at the beginning of the buffer; returns how much of it they were, or -1. */
static ssize_t carry_whole(size_t filled)
{
	size_t at = 0;
	struct out_header header;
	while (filled - at >= sizeof header) {
		memcpy(&header, answers + at, sizeof header);
		if (header.length < sizeof header || header.length > sizeof answers)
			return -1;
		if (filled - at < header.length)
			break;
		if (!carry_answer(answers + at, &header))
			return -1;
		at += header.length;
	}
	return (ssize_t)at;
}

static void carry_answers(void)
{
	/* To wait for the host where a read does not: while it is not there. */
	int wakes = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event event = {.events = EPOLLIN | EPOLLET};
	struct stat found;
	if (wakes < 0 || epoll_ctl(wakes, EPOLL_CTL_ADD, fds[PORT], &event) < 0 || fstat(fds[PORT], &found) < 0)
		return;
	size_t filled = 0;
	for (;;) {
		ssize_t got = read(fds[PORT], answers + filled, sizeof answers - filled);
		if (got < 0 && errno == EINTR)
			continue;
		if (got == 0 && !S_ISSOCK(found.st_mode)) {
			epoll_wait(wakes, &event, 1, -1);
			continue;
		}
		if (got <= 0)
			return;
		filled += (size_t)got;
		ssize_t done = carry_whole(filled);
		if (done < 0)
			return;
		filled -= (size_t)done;
		if (done)
			memmove(answers, answers + done, filled);
	}
}

/* ---- forgetting ---- */

static void *forget_when_asked(void *nothing)
{
	char words[64];
	while (read(fds[ASKED], words, sizeof words) > 0)
		(void)!write_retried(fds[CACHES], "2", 1);
	return nothing;
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
	ssize_t got = read(fuse, requests, sizeof requests);
	if (got < 0)
		return say_no(step, "read FUSE_INIT");
	memcpy(&in, requests, sizeof in);
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

/*
 * Lets the kernel read as much ahead as a request can be of, where it takes an eighth of that otherwise. The mount is
 * not asked for its number, as nobody answers for it yet.
 */
static void read_further_ahead(const char *point)
{
	char line[1024], device[32], place[512], path[64];
	FILE *mounts = fopen("/proc/self/mountinfo", "re");
	*path = 0;
	while (mounts && fgets(line, sizeof line, mounts))
		if (sscanf(line, "%*s %*s %31s %*s %511s", device, place) == 2 && strcmp(place, point) == 0)
			snprintf(path, sizeof path, "/sys/class/bdi/%s/read_ahead_kb", device);
	if (mounts)
		fclose(mounts);
	int fd = *path ? open(path, O_WRONLY | O_CLOEXEC) : -1;
	if (fd >= 0) {
		(void)!write_retried(fd, READ_AHEAD_KB, sizeof READ_AHEAD_KB - 1);
		close(fd);
	}
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
	read_further_ahead(point);
	return 0;
}

/* ---- the process ---- */

/* Closes all descriptors but these, which get other numbers. */
static int keep_only_ours(void)
{
	unsigned past = 0;
	for (size_t index = 0; index < FDS; index++) {
		int fd = fcntl(fds[index], F_DUPFD_CLOEXEC, past);
		if (fd < 0)
			return -1;
		fds[index] = fd;
		past = (unsigned)fd + 1;
	}
	past = 0;
	for (size_t index = 0; index < FDS; index++) {
		if ((unsigned)fds[index] > past)
			sys_close_range(past, (unsigned)fds[index] - 1);
		past = (unsigned)fds[index] + 1;
	}
	return sys_close_range(past, ~0u);
}

/* In the child; the end of one way is the end of both. */
static void carry(void)
{
	sigset_t none;
	sigemptyset(&none);
	for (int signo = 1; signo < NSIG; signo++)
		signal(signo, SIG_DFL);
	signal(SIGPIPE, SIG_IGN);
	sigprocmask(SIG_SETMASK, &none, NULL);
	prctl(PR_SET_NAME, "share");
	/* What it needs memory for may be what frees some. */
	prctl(K_PR_SET_IO_FLUSHER, 1, 0, 0, 0);
	pthread_t thread;
	if (keep_only_ours() < 0 || pthread_create(&thread, NULL, forget_when_asked, NULL) != 0 ||
	    pthread_create(&thread, NULL, carry_requests, NULL) != 0)
		return;
	carry_answers();
}

static void close_all(int but)
{
	int code = errno;
	for (size_t index = 0; index < FDS; index++) {
		if (fds[index] >= 0 && fds[index] != but)
			close(fds[index]);
		fds[index] = -1;
	}
	errno = code;
}

pid_t share_carry(int port, const char *point, const char *caches, const char **step)
{
	pid_t pid = -1;
	int pipe[2] = {-1, -1};
	fds[PORT] = port;
	fds[FUSE] = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	fds[CACHES] = open(caches, O_WRONLY | O_CLOEXEC);
	bool piped = pipe2(pipe, O_CLOEXEC) == 0 && fcntl(pipe[1], F_SETFL, O_NONBLOCK) == 0;
	fds[ASKED] = pipe[0];
	fds[ASK] = pipe[1];
	if (!piped)
		*step = "make the share's pipe";
	else if (fds[FUSE] < 0 || fds[CACHES] < 0)
		*step = fds[FUSE] < 0 ? "open /dev/fuse" : caches;
	else if (mount_share(fds[FUSE], point, step) == 0) {
		*step = "start the share";
		pid = fork();
		if (pid == 0) {
			carry();
			_exit(1);
		}
		if (pid < 0)
			umount2(point, MNT_DETACH);
	}
	close_all(port);
	return pid;
}

pid_t share_start(const char *port, const char **step)
{
	int fd = open(port, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return say_no(step, "open the share's port");
	pid_t pid = share_carry(fd, SHARE_POINT, SHARE_CACHES, step);
	int code = errno;
	close(fd);
	errno = code;
	return pid;
}
