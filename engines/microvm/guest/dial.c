#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core.h"

/* Seven seconds: whoever does not answer on the loopback by then has too much to do. */
#define SYN_RETRIES 2

/* A connection on its way; its number is kept by a process without streams. */
struct call {
	struct watch watch;
	uint32_t id, number;
	uint16_t port;
	bool six;
};

static void call_ready(struct watch *watch, uint32_t events);

static void call_end(struct call *call, const struct err *err)
{
	if (err) {
		process_drop(process_find(call->number));
		answer_failed(call->id, err);
	}
	free(call);
}

/* Starts on the address whose turn it is. */
static int call_begin(struct call *call, struct err *err)
{
	struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(call->port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
	struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons(call->port), .sin6_addr = IN6ADDR_LOOPBACK_INIT};
	const struct sockaddr *address = call->six ? (struct sockaddr *)&six : (struct sockaddr *)&four;
	int fd = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return fail_errno(err, "make a socket");
	setsockopt(fd, IPPROTO_TCP, TCP_SYNCNT, &(int){SYN_RETRIES}, sizeof(int));
	call->watch = (struct watch){.ready = call_ready, .fd = fd};
	if (connect(fd, address, call->six ? sizeof six : sizeof four) < 0 && errno != EINPROGRESS)
		fail_errno(err, "connect");
	else if (watch_add(&call->watch, EPOLLOUT | EPOLLET) < 0)
		fail_errno(err, "watch a connection");
	else
		return 0;
	close(fd);
	return -1;
}

static void call_made(struct call *call)
{
	struct process *process = process_find(call->number);
	struct err err;
	int fd = call->watch.fd, input = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (input < 0) {
		fail_errno(&err, "share a connection");
		close(fd);
		call_end(call, &err);
		return;
	}
	if (source_open(&process->out[0], process, 1, fd, &err) < 0) {
		close(input);
		call_end(call, &err);
	} else if (sink_open(&process->in, input, &err) < 0) {
		call_end(call, &err);
	} else {
		process->in.socket = true;
		answer_done(call->id);
		call_end(call, NULL);
	}
}

static void call_next(struct call *call, struct err *err)
{
	if (!call->six) {
		call->six = true;
		struct err other;
		if (call_begin(call, &other) == 0)
			return;
	}
	call_end(call, err);
}

static void call_ready(struct watch *watch, uint32_t events)
{
	struct call *call = (struct call *)watch;
	struct err err;
	int number = 0;
	socklen_t size = sizeof number;
	(void)events;
	watch_remove(watch);
	getsockopt(watch->fd, SOL_SOCKET, SO_ERROR, &number, &size);
	if (!number) {
		call_made(call);
		return;
	}
	close(watch->fd);
	fail(&err, number, "connect", "port %u of the loopback: %s", call->port, strerror(number));
	call_next(call, &err);
}

void dial(uint32_t id, uint32_t number, unsigned port)
{
	struct err err;
	struct call *call = NULL;
	struct process *process = process_new(number, &err);
	if (!process) {
		answer_failed(id, &err);
		return;
	}
	call = calloc(1, sizeof *call);
	if (!call) {
		fail_errno(&err, "dial");
		process_drop(process);
		answer_failed(id, &err);
		return;
	}
	*call = (struct call){.id = id, .number = number, .port = (uint16_t)port};
	if (call_begin(call, &err) < 0)
		call_next(call, &err);
}
