#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "core.h"

#define EVENTS 64
/* Long enough for a host that is busy; one that has gone does not read it at all. */
#define LAST_WORDS_MS 1000

static struct {
	int epoll;
	pid_t share;
	struct watch children;
} loop = {.epoll = -1};

int watch_add(struct watch *watch, uint32_t events)
{
	struct epoll_event event = {.events = events, .data.ptr = watch};
	return epoll_ctl(loop.epoll, EPOLL_CTL_ADD, watch->fd, &event);
}

void watch_remove(struct watch *watch)
{
	epoll_ctl(loop.epoll, EPOLL_CTL_DEL, watch->fd, NULL);
}

int64_t milliseconds_now(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

void child_signals(void)
{
	const struct sched_param usual = {.sched_priority = 0};
	sigset_t none;
	/* A C library may refuse to, for it cannot do it as POSIX says. */
	syscall(SYS_sched_setscheduler, 0, SCHED_OTHER, &usual);
	signal(SIGPIPE, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

int file_put(int directory, const char *path, const void *data, size_t size)
{
	int fd = openat(directory, path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return errno;
	ssize_t put = write(fd, data, size);
	int number = put < 0 ? errno : (size_t)put == size ? 0 : EIO;
	close(fd);
	return number;
}

static void say(const char *format, va_list args)
{
	char text[512];
	unsigned char payload[sizeof text + 16];
	struct reply reply = {.data = payload, .room = sizeof payload};
	vsnprintf(text, sizeof text, format, args);
	reply_text(&reply, T_MESSAGE, text);
	port_word(K_NOTE, 0, reply.data, reply.size);
}

void note(const char *format, ...)
{
	va_list args;
	if (!port_has_leisure())
		return;
	va_start(args, format);
	say(format, args);
	va_end(args);
}

void die(const char *format, ...)
{
	va_list args;
	if (port_has_leisure()) {
		va_start(args, format);
		say(format, args);
		va_end(args);
	}
	port_drain(LAST_WORDS_MS);
	machine_off();
}

static void children_ready(struct watch *watch, uint32_t events)
{
	struct signalfd_siginfo info;
	(void)events;
	while (read(watch->fd, &info, sizeof info) > 0)
		;
	agent_reap();
}

void agent_reap(void)
{
	processes_reap(loop.share);
}

static void begin(int port)
{
	const int faults[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGABRT};
	sigset_t all;
	sigfillset(&all);
	for (unsigned i = 0; i < sizeof faults / sizeof *faults; i++)
		sigdelset(&all, faults[i]);
	sigprocmask(SIG_BLOCK, &all, NULL);
	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&all);
	sigaddset(&all, SIGCHLD);
	loop.epoll = epoll_create1(EPOLL_CLOEXEC);
	loop.children = (struct watch){.ready = children_ready, .fd = signalfd(-1, &all, SFD_CLOEXEC | SFD_NONBLOCK)};
	if (loop.epoll < 0 || loop.children.fd < 0 || watch_add(&loop.children, EPOLLIN) < 0 || port_open(port) < 0)
		machine_off();
}

void agent_run(int port, pid_t share)
{
	struct epoll_event events[EVENTS];
	begin(port);
	loop.share = share;
	if (share > 0)
		request_shared();
	for (;;) {
		bool busy = port_in();
		int left = orders_mind(), ends = ends_mind();
		if (left < 0 || (ends >= 0 && ends < left))
			left = ends;
		streams_pump();
		port_out();
		processes_sweep();
		ends_sweep();
		int count = epoll_wait(loop.epoll, events, EVENTS, busy || streams_waiting() ? 0 : left);
		for (int i = 0; i < count; i++) {
			struct watch *watch = events[i].data.ptr;
			watch->ready(watch, events[i].events);
		}
	}
}
