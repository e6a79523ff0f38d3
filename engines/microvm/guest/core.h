/* What the parts of the core know of each other; nothing of it is for containers. */
#pragma once

#include <sys/epoll.h>

#include "agent.h"

/* How many processes and connections there may be at once. */
#define PROCESSES_MAX 4096u

/* ---- loop.c -------------------------------------------------------------------------------------------------- */

/* What has ended is dealt with now. */
void agent_reap(void);
/* Serves the port (non-blocking) for ever. `share`: the process that serves the share, 0: none. */
_Noreturn void agent_run(int port, pid_t share);
/*
 * main.c: what only containers need is there from now on, a tenth of a second of an emulated machine's time. Before there
 * are any: what nobody has sealed before could be written to.
 */
void machine_complete(void);
/* main.c: the end. The machine goes off; what is still to be sent has been. */
_Noreturn void machine_off(void);
/* No way to go on: the host is told why, and the machine goes off. */
_Noreturn void die(const char *format, ...) PRINTF(1, 2);

/* ---- port.c: bytes to and from the host ---------------------------------------------------------------------- */

int port_open(int fd);
/* Reads and handles what has come, as far as there is room for answers. True: there may be more. */
bool port_in(void);
/* Writes what the port takes. */
void port_out(void);
/* There is room for what can be left out. */
bool port_has_leisure(void);
/* Waits until all is written, at most so many milliseconds. */
void port_drain(int milliseconds);
/* There is room for one more frame of a stream: little enough waits before it. */
bool port_has_room(void);
/* Where the payload of a stream's next frame goes; then port_sent. port_word does both. */
unsigned char *port_space(void);
void port_sent(unsigned kind, uint32_t id, size_t size);
void port_word(unsigned kind, uint32_t id, const void *payload, size_t size);

/* ---- requests.c ---------------------------------------------------------------------------------------------- */

/* A frame of the host's. The payload may be changed. */
void request_handle(unsigned kind, uint32_t id, unsigned char *payload, size_t size);
/* There is a share. */
void request_shared(void);
void answer_failed(uint32_t id, const struct err *err);
void answer_done(uint32_t id);

/* ---- streams.c ----------------------------------------------------------------------------------------------- */

struct process;

/* From the machine to the host. */
struct source {
	struct watch watch;
	struct source *next, *previous; /* in the queue of those that have something */
	struct process *process;
	uint32_t stream;
	uint32_t credit;
	/* Of its last words. */
	size_t left;
	bool open, queued, ready, hung_up, pipe, last;
};

/* From the host into the machine. What its descriptor does not take yet waits in `ring`, FO_WINDOW bytes. */
struct sink {
	struct watch watch;
	struct process *process;
	unsigned char *ring;
	size_t at, held;
	uint32_t stream;
	uint32_t allowed, owed;
	bool open, ending, socket;
};

/* A request whose process is on its way. */
struct order {
	struct watch watch;
	struct process *process, *next;
	struct container *container; /* that it is executed in; NULL: it makes one */
	struct unborn *unborn;	     /* NULL: it is there */
	int64_t due;
	uint32_t id;
};

int source_open(struct source *source, struct process *process, unsigned which, int fd, struct err *err);
int sink_open(struct sink *sink, int fd, struct err *err);
void source_close(struct source *source);
/* Its process is there: what it says is passed on from now on. */
void source_begin(struct source *source);
void sink_close(struct sink *sink);
void source_credit(struct source *source, uint64_t size);
/* Its writer has ended: what is there already is all that there will be. */
void source_last(struct source *source);
void sink_data(struct sink *sink, const unsigned char *data, size_t size);
void sink_end(struct sink *sink);
/* Moves what sources have, one frame each in turn. */
void streams_pump(void);
/* A source has something, may send it, and the port takes it. */
bool streams_waiting(void);

/* ---- processes.c --------------------------------------------------------------------------------------------- */

/* A process of a container's, or (pid 0, no container) a connection. */
struct process {
	struct process *next;
	uint32_t number;
	pid_t pid;
	struct container *container;
	uint64_t oom_kills;
	struct order order;
	struct source out[2];
	struct sink in;
	bool first, ended, oom, dropped;
	uint8_t code;
	unsigned short width, height; /* of its terminal */
};

struct process *process_find(uint32_t number);
struct process *process_first(const struct container *container);
/* A process without streams; the number is free and below FO_NUMBER_MAX, or *err. */
struct process *process_new(uint32_t number, struct err *err);
/* Without a word. */
void process_drop(struct process *process);
/* Its streams as pipes, or ready for a terminal; and that, the core's from now on, if there is one (-1: none). */
int process_stdio(struct process *process, const struct program *program, struct stdio *stdio, struct err *err);
int process_terminal(struct process *process, int terminal, struct err *err);
void stdio_close(struct stdio *stdio);
/* It has ended (a connection: both ways); EXITED follows once its sources have. */
void process_ended(struct process *process, unsigned code);
/* One of its streams has: EXITED if that was all. */
void process_stream_ended(struct process *process);
/* Ends a connection. */
void process_hang_up(struct process *process);
void process_resize(struct process *process, unsigned width, unsigned height);
/* All that is left of a container's processes is over, with EXITED. */
void processes_end(const struct container *container);
/* Reaps. */
void processes_reap(pid_t share);
/* Frees what was dropped; when no event of theirs can be under way. */
void processes_sweep(void);

/* ---- orders.c ------------------------------------------------------------------------------------------------ */

/* CREATE, or EXEC in a container. */
void order_begin(uint32_t id, const struct fields *request, struct container *container);
/* Its process is there, or not waited for any more: `why`, as container_born has it. Answers. */
void order_end(struct process *process, int why);
/* Processes on their way into a container that ends. */
void orders_end(const struct container *container);
/* Ends those that have taken too long; returns how many milliseconds the next one still has, -1: there is none. */
int orders_mind(void);

/* ---- ends.c -------------------------------------------------------------------------------------------------- */

/* DELETE. */
void end_begin(uint32_t id, struct container *container);
/* As orders_mind, of deletions. */
int ends_mind(void);
void ends_sweep(void);

/* ---- dial.c, clock.c ----------------------------------------------------------------------------------------- */

/* Answers the request itself, now or later. */
void dial(uint32_t id, uint32_t number, unsigned port);
int clock_put(uint64_t nanoseconds, const struct field *entropy, struct err *err);
