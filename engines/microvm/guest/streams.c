#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <termios.h>
#include <unistd.h>

#include "core.h"

/* With its header two writes of the port's, and not a third one for a few bytes. */
#define FRAME_DATA (FO_DATA_MAX - FO_HEADER_SIZE)
#define GRANT (FO_WINDOW / 4)
/* More than a terminal holds of what was written to it. */
#define TERMINAL_HELD (64u * 1024u)
/* A ring that has held this much gives its memory back once it is empty. */
#define RING_KEPT (64u * 1024u)

static struct source *queue;

static void enqueue(struct source *source)
{
	if (source->queued || !source->open || !source->ready || !source->credit || source->process->order.unborn)
		return;
	source->queued = true;
	if (!queue) {
		queue = source->next = source->previous = source;
		return;
	}
	source->next = queue;
	source->previous = queue->previous;
	queue->previous->next = source;
	queue->previous = source;
}

static void dequeue(struct source *source)
{
	if (!source->queued)
		return;
	source->queued = false;
	source->next->previous = source->previous;
	source->previous->next = source->next;
	if (queue == source)
		queue = source->next == source ? NULL : source->next;
}

static void source_ready(struct watch *watch, uint32_t events)
{
	struct source *source = (struct source *)watch;
	if (!source->open)
		return;
	source->ready = true;
	if (events & (EPOLLHUP | EPOLLERR | EPOLLRDHUP))
		source->hung_up = true;
	enqueue(source);
}

int source_open(struct source *source, struct process *process, unsigned which, int fd, struct err *err)
{
	*source = (struct source){
		.watch = {.ready = source_ready, .fd = fd},
		.process = process,
		.stream = process->number * 4 + which,
		.credit = FO_WINDOW,
		.open = true,
	};
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
	if (watch_add(&source->watch, EPOLLIN | EPOLLRDHUP | EPOLLET) < 0) {
		fail_errno(err, "watch a stream");
		close(fd);
		source->open = false;
		return -1;
	}
	return 0;
}

void source_close(struct source *source)
{
	if (!source->open)
		return;
	dequeue(source);
	source->open = false;
	watch_remove(&source->watch);
	close(source->watch.fd);
}

void source_begin(struct source *source)
{
	enqueue(source);
}

static void source_end(struct source *source)
{
	source_close(source);
	port_word(K_EOF, source->stream, NULL, 0);
	process_stream_ended(source->process);
}

void source_credit(struct source *source, uint64_t size)
{
	if (!size || size > FO_WINDOW - source->credit)
		die("a credit of %llu bytes for stream %u", (unsigned long long)size, source->stream);
	source->credit += (uint32_t)size;
	enqueue(source);
}

void source_last(struct source *source)
{
	/* Whoever else holds the other end keeps the stream open neither by waiting nor by saying more and more. */
	int left = 0;
	source->ready = source->hung_up = source->last = true;
	source->left = source->pipe && ioctl(source->watch.fd, FIONREAD, &left) == 0 ? (size_t)left : TERMINAL_HELD;
	enqueue(source);
}

static void pump_one(struct source *source)
{
	size_t size = source->credit < FRAME_DATA ? source->credit : FRAME_DATA;
	unsigned char *to = port_space();
	if (source->last && size > source->left)
		size = source->left;
	ssize_t got = size ? read(source->watch.fd, to, size) : 0;
	if (got > 0) {
		source->left -= (size_t)got;
		port_sent(K_DATA, source->stream, (size_t)got);
		source->credit -= (uint32_t)got;
		/* A pipe gives what it has; an end that comes later is another event. */
		if (source->pipe && !source->hung_up && (size_t)got < size)
			source->ready = false;
		if (!source->ready || !source->credit)
			dequeue(source);
		else if (queue == source)
			queue = source->next;
	} else if (got < 0 && errno == EINTR) {
		return;
	} else if (got < 0 && errno == EAGAIN && !source->last) {
		source->ready = false;
		dequeue(source);
	} else {
		source_end(source);
	}
}

void streams_pump(void)
{
	while (streams_waiting())
		pump_one(queue);
}

bool streams_waiting(void)
{
	return queue && port_has_room();
}

static void grant(struct sink *sink, size_t size)
{
	if (sink->process->dropped)
		return;
	sink->owed += (uint32_t)size;
	if (sink->owed < GRANT)
		return;
	unsigned char payload[8] = {0};
	for (int i = 0; i < 4; i++)
		payload[i] = (unsigned char)(sink->owed >> (8 * i));
	port_word(K_CREDIT, sink->stream, payload, sizeof payload);
	sink->allowed += sink->owed;
	sink->owed = 0;
}

/* How much went in; what nobody can read any more counts as gone. */
static size_t put(struct sink *sink, const unsigned char *data, size_t size)
{
	size_t done = 0;
	while (sink->open && done < size) {
		ssize_t put = sink->socket ? send(sink->watch.fd, data + done, size - done, MSG_NOSIGNAL)
					   : write(sink->watch.fd, data + done, size - done);
		if (put >= 0)
			done += (size_t)put;
		else if (errno == EAGAIN)
			return done;
		else if (errno != EINTR)
			sink_close(sink);
	}
	return size;
}

/* A terminal cannot be half closed: one that reads lines gets what stands for an end. */
static void sink_last(struct sink *sink)
{
	struct termios mode;
	if (!sink->socket && tcgetattr(sink->watch.fd, &mode) == 0 && (mode.c_lflag & ICANON) &&
	    write(sink->watch.fd, &mode.c_cc[VEOF], 1) < 0)
		note("the end of stream %u: %s", sink->stream, strerror(errno));
	sink_close(sink);
}

static void flush(struct sink *sink)
{
	while (sink->held) {
		size_t size = FO_WINDOW - sink->at;
		size_t done = put(sink, sink->ring + sink->at, size < sink->held ? size : sink->held);
		if (!sink->open)
			return;
		if (!done)
			return;
		bool kept = sink->at + done <= RING_KEPT;
		sink->at = (sink->at + done) % FO_WINDOW;
		sink->held -= done;
		grant(sink, done);
		if (!sink->held) {
			if (!kept)
				madvise(sink->ring, FO_WINDOW, MADV_DONTNEED);
			sink->at = 0;
		}
	}
	if (sink->ending)
		sink_last(sink);
}

static void sink_ready(struct watch *watch, uint32_t events)
{
	struct sink *sink = (struct sink *)watch;
	(void)events;
	if (sink->open)
		flush(sink);
}

int sink_open(struct sink *sink, int fd, struct err *err)
{
	sink->watch = (struct watch){.ready = sink_ready, .fd = fd};
	sink->open = true;
	/* Address space; memory is taken by what waits in it. */
	sink->ring = mmap(NULL, FO_WINDOW, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (sink->ring == MAP_FAILED) {
		fail_errno(err, "make room for a stream");
		sink->ring = NULL;
	} else {
		fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
		if (watch_add(&sink->watch, EPOLLOUT | EPOLLET) == 0)
			return 0;
		fail_errno(err, "watch a stream");
	}
	if (sink->ring)
		munmap(sink->ring, FO_WINDOW);
	sink->ring = NULL;
	close(fd);
	sink->open = false;
	return -1;
}

void sink_close(struct sink *sink)
{
	if (!sink->open)
		return;
	sink->open = false;
	watch_remove(&sink->watch);
	if (sink->socket)
		shutdown(sink->watch.fd, SHUT_WR);
	close(sink->watch.fd);
	munmap(sink->ring, FO_WINDOW);
	sink->ring = NULL;
	if (sink->held) {
		size_t lost = sink->held;
		sink->held = 0;
		grant(sink, lost);
	}
	process_stream_ended(sink->process);
}

void sink_data(struct sink *sink, const unsigned char *data, size_t size)
{
	if (size > sink->allowed)
		die("%zu bytes for stream %u, which may have %u", size, sink->stream, sink->allowed);
	sink->allowed -= (uint32_t)size;
	size_t done = sink->open && !sink->ending ? (sink->held ? 0 : put(sink, data, size)) : size;
	for (size_t at = done; at < size;) {
		size_t to = (sink->at + sink->held) % FO_WINDOW, some = FO_WINDOW - to;
		if (some > size - at)
			some = size - at;
		memcpy(sink->ring + to, data + at, some);
		sink->held += some;
		at += some;
	}
	grant(sink, done);
}

void sink_end(struct sink *sink)
{
	sink->ending = true;
	if (sink->open && !sink->held)
		sink_last(sink);
}
