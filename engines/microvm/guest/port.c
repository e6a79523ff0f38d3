#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core.h"

/*
 * Streams stop where this much waits to be written, so that an answer waits behind few of their frames. Requests are
 * not handled while there is no room for the largest answer, and for all that processes may say besides: that they
 * have begun or not, that they have ended, and what they have taken in.
 */
#define STREAMS_SIZE (2u * FO_DATA_MAX)
#define WORDS_SIZE (PROCESSES_MAX * 768u)
#define ANSWER_SIZE (FO_REQUEST_MAX + FO_HEADER_SIZE)
#define OUT_SIZE (STREAMS_SIZE + FO_DATA_MAX + ANSWER_SIZE + WORDS_SIZE)
#define IN_SIZE (FO_REQUEST_MAX + FO_HEADER_SIZE)
/* What the port takes at once: the driver copies a write into one buffer of at most so many bytes. */
#define CHUNK (32u * 1024u)

static struct {
	struct watch watch;
	bool readable, writable, socket;
	size_t in_at, in_end, out_at, out_end;
	unsigned char in[IN_SIZE], out[OUT_SIZE];
} port;

static uint32_t u32_at(const unsigned char *at)
{
	return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static void put_u32(unsigned char *at, uint32_t value)
{
	for (int i = 0; i < 4; i++)
		at[i] = (unsigned char)(value >> (8 * i));
}

static void ready(struct watch *watch, uint32_t events)
{
	(void)watch;
	(void)events;
	port.readable = port.writable = true;
}

int port_open(int fd)
{
	port.watch = (struct watch){.ready = ready, .fd = fd};
	struct stat found;
	port.socket = fstat(fd, &found) == 0 && S_ISSOCK(found.st_mode);
	port.readable = port.writable = true;
	return watch_add(&port.watch, EPOLLIN | EPOLLOUT | EPOLLET);
}

static size_t free_space(void)
{
	return OUT_SIZE - (port.out_end - port.out_at);
}

/* All that is free lies behind what is held. */
static void make_room(void)
{
	if (port.out_at) {
		memmove(port.out, port.out + port.out_at, port.out_end - port.out_at);
		port.out_end -= port.out_at;
		port.out_at = 0;
	}
}

static bool answers_fit(void)
{
	return free_space() >= ANSWER_SIZE + WORDS_SIZE;
}

/* The size of a frame at `at`, with its header; 0 where the header is not whole. */
static size_t frame_size(void)
{
	if (port.in_end - port.in_at < FO_HEADER_SIZE)
		return 0;
	uint32_t size = u32_at(port.in + port.in_at);
	if (size > FO_REQUEST_MAX)
		die("a frame of %u bytes", size);
	return FO_HEADER_SIZE + size;
}

static bool handle_one(void)
{
	size_t size = frame_size();
	if (!size || port.in_end - port.in_at < size || !answers_fit())
		return false;
	unsigned char *head = port.in + port.in_at;
	port.in_at += size;
	if (head[6] | head[7])
		die("a frame with %d where nothing is", head[6] | head[7] << 8);
	request_handle((unsigned)(head[4] | head[5] << 8), u32_at(head + 8), head + FO_HEADER_SIZE, size - FO_HEADER_SIZE);
	return true;
}

bool port_in(void)
{
	if (port.readable && port.in_end < IN_SIZE) {
		ssize_t got = read(port.watch.fd, port.in + port.in_end, IN_SIZE - port.in_end);
		if (got > 0)
			port.in_end += (size_t)got;
		else if (got == 0 && port.socket)
			machine_off(); /* where a port's end is that nobody has connected to it yet, or again */
		else if (got == 0 || errno == EAGAIN)
			port.readable = false;
		else if (errno != EINTR)
			die("read the port: %s", strerror(errno));
	}
	while (handle_one())
		;
	if (port.in_at == port.in_end)
		port.in_at = port.in_end = 0;
	else if (port.in_at && (port.in_end == IN_SIZE || IN_SIZE - port.in_at < frame_size())) {
		memmove(port.in, port.in + port.in_at, port.in_end - port.in_at);
		port.in_end -= port.in_at;
		port.in_at = 0;
	}
	return port.readable && port.in_end < IN_SIZE && answers_fit();
}

/* Space for a frame's header and `size` bytes behind it. */
static unsigned char *reserve(size_t size)
{
	if (OUT_SIZE - port.out_end < FO_HEADER_SIZE + size)
		make_room();
	if (OUT_SIZE - port.out_end < FO_HEADER_SIZE + size)
		return NULL;
	return port.out + port.out_end;
}

bool port_has_room(void)
{
	return port.out_end - port.out_at < STREAMS_SIZE;
}

bool port_has_leisure(void)
{
	return port.out_end - port.out_at < STREAMS_SIZE + FO_DATA_MAX;
}

static bool idle(void)
{
	return port.out_at == port.out_end;
}

unsigned char *port_space(void)
{
	return reserve(FO_DATA_MAX) + FO_HEADER_SIZE;
}

void port_sent(unsigned kind, uint32_t id, size_t size)
{
	unsigned char *head = port.out + port.out_end;
	put_u32(head, (uint32_t)size);
	put_u32(head + 4, kind);
	put_u32(head + 8, id);
	port.out_end += FO_HEADER_SIZE + size;
}

void port_word(unsigned kind, uint32_t id, const void *payload, size_t size)
{
	unsigned char *head = reserve(size);
	if (!head)
		die("no room for a frame of kind %u", kind);
	if (size)
		memcpy(head + FO_HEADER_SIZE, payload, size);
	port_sent(kind, id, size);
}

void port_out(void)
{
	while (port.writable && !idle()) {
		size_t size = port.out_end - port.out_at;
		ssize_t put = write(port.watch.fd, port.out + port.out_at, size < CHUNK ? size : CHUNK);
		if (put > 0)
			port.out_at += (size_t)put;
		else if (put < 0 && errno == EAGAIN)
			port.writable = false;
		else if (put < 0 && errno != EINTR)
			machine_off();
	}
	if (idle())
		port.out_at = port.out_end = 0;
}

void port_drain(int milliseconds)
{
	int64_t end = milliseconds_now() + milliseconds;
	for (;;) {
		struct pollfd one = {.fd = port.watch.fd, .events = POLLOUT};
		port.writable = true;
		port_out();
		int64_t left = end - milliseconds_now();
		if (idle() || left <= 0 || poll(&one, 1, (int)left) == 0)
			return;
	}
}
