#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core.h"

#define BUCKETS 256u

static struct {
	struct process *bucket[BUCKETS];
	/* Dropped, but perhaps still named by an event of the round. */
	struct process *dropped;
	unsigned count;
} processes;

struct process *process_find(uint32_t number)
{
	struct process *one = processes.bucket[number % BUCKETS];
	while (one && one->number != number)
		one = one->next;
	return one;
}

static struct process *process_next(const struct process *after)
{
	unsigned bucket = 0;
	if (after) {
		if (after->next)
			return after->next;
		bucket = after->number % BUCKETS + 1;
	}
	while (bucket < BUCKETS && !processes.bucket[bucket])
		bucket++;
	return bucket < BUCKETS ? processes.bucket[bucket] : NULL;
}

struct process *process_first(const struct container *container)
{
	struct process *one = NULL;
	while ((one = process_next(one)))
		if (one->first && one->container == container)
			return one;
	return NULL;
}

struct process *process_new(uint32_t number, struct err *err)
{
	if (process_find(number)) {
		fail(err, EEXIST, "number a process", "%u is taken", number);
		fail_field(err, "process");
		return NULL;
	}
	if (processes.count >= PROCESSES_MAX) {
		fail(err, EAGAIN, "number a process", "there are %u processes", processes.count);
		return NULL;
	}
	struct process *one = calloc(1, sizeof *one);
	if (!one) {
		fail_errno(err, "number a process");
		return NULL;
	}
	one->number = number;
	one->in.process = one;
	one->in.stream = number * 4;
	one->in.allowed = FO_WINDOW;
	one->next = processes.bucket[number % BUCKETS];
	processes.bucket[number % BUCKETS] = one;
	processes.count++;
	return one;
}

void process_drop(struct process *process)
{
	struct process **at = &processes.bucket[process->number % BUCKETS];
	process->dropped = true;
	while (*at != process)
		at = &(*at)->next;
	*at = process->next;
	processes.count--;
	source_close(&process->out[0]);
	source_close(&process->out[1]);
	sink_close(&process->in);
	process->next = processes.dropped;
	processes.dropped = process;
}

void processes_sweep(void)
{
	while (processes.dropped) {
		struct process *one = processes.dropped;
		processes.dropped = one->next;
		free(one);
	}
}

/* ---- streams ------------------------------------------------------------------------------------------------- */

void stdio_close(struct stdio *stdio)
{
	int *all[] = {&stdio->in, &stdio->out, &stdio->err, &stdio->terminal};
	for (unsigned i = 0; i < sizeof all / sizeof *all; i++) {
		if (*all[i] >= 0)
			close(*all[i]);
		*all[i] = -1;
	}
}

/* Whoever opens /dev/stdout again has to own it. */
static int pipe_for(const struct program *program, int *theirs, unsigned end, int *ours)
{
	int pair[2];
	if (pipe2(pair, O_CLOEXEC) < 0)
		return -1;
	*theirs = pair[end];
	*ours = pair[!end];
	return fchown(*theirs, program->uid, program->gid);
}

static int sources_open(struct process *process, const struct program *program, struct stdio *stdio, struct err *err)
{
	int *theirs[] = {&stdio->out, &stdio->err};
	for (unsigned i = 0; i < 2; i++) {
		int ours = -1;
		if (pipe_for(program, theirs[i], 1, &ours) < 0) {
			fail_errno(err, "make a pipe");
			if (ours >= 0)
				close(ours);
			return -1;
		}
		if (source_open(&process->out[i], process, i + 1, ours, err) < 0)
			return -1;
		process->out[i].pipe = true;
	}
	return 0;
}

int process_stdio(struct process *process, const struct program *program, struct stdio *stdio, struct err *err)
{
	int ours = -1;
	*stdio = (struct stdio){-1, -1, -1, -1};
	if (program->tty)
		return 0;
	if (sources_open(process, program, stdio, err) == 0) {
		if (!program->stdin_open) {
			stdio->in = open("/dev/null", O_RDONLY | O_CLOEXEC);
			if (stdio->in >= 0)
				return 0;
			fail_errno(err, "open /dev/null");
		} else if (pipe_for(program, &stdio->in, 0, &ours) < 0) {
			fail_errno(err, "make a pipe");
			if (ours >= 0)
				close(ours);
		} else if (sink_open(&process->in, ours, err) == 0) {
			return 0;
		}
	}
	stdio_close(stdio);
	return -1;
}

int process_terminal(struct process *process, int terminal, struct err *err)
{
	if (terminal < 0)
		return 0;
	int input = fcntl(terminal, F_DUPFD_CLOEXEC, 0);
	if (input < 0) {
		fail_errno(err, "share a terminal");
		close(terminal);
		return -1;
	}
	if (source_open(&process->out[0], process, 1, terminal, err) < 0) {
		close(input);
		return -1;
	}
	/* It may have been told before there was one. */
	if (process->width || process->height)
		process_resize(process, process->width, process->height);
	return sink_open(&process->in, input, err);
}

void process_resize(struct process *process, unsigned width, unsigned height)
{
	struct winsize size = {.ws_col = (unsigned short)width, .ws_row = (unsigned short)height};
	process->width = size.ws_col;
	process->height = size.ws_row;
	if (process->out[0].open && !process->out[0].pipe)
		ioctl(process->out[0].watch.fd, TIOCSWINSZ, &size);
}

/* ---- ends ---------------------------------------------------------------------------------------------------- */

static void say_exited(struct process *process)
{
	unsigned char payload[64];
	struct reply reply = {.data = payload, .room = sizeof payload};
	reply_u64(&reply, T_CODE, process->code);
	if (process->oom)
		reply_u64(&reply, T_OOM, 1);
	port_word(K_EXITED, process->number, reply.data, reply.size);
	process_drop(process);
}

void process_stream_ended(struct process *process)
{
	if (process->dropped)
		return;
	/* A connection has ended when both sides have. */
	if (process->in.socket && !process->in.open && !process->out[0].open)
		process->ended = true;
	if (process->ended && !process->out[0].open && !process->out[1].open)
		say_exited(process);
}

void process_ended(struct process *process, unsigned code)
{
	process->ended = true;
	process->code = (uint8_t)code;
	sink_close(&process->in);
	for (unsigned i = 0; i < 2; i++)
		if (process->out[i].open)
			source_last(&process->out[i]);
	process_stream_ended(process);
}

void process_hang_up(struct process *process)
{
	if (process->out[0].open) {
		source_close(&process->out[0]);
		port_word(K_EOF, process->out[0].stream, NULL, 0);
	}
	sink_close(&process->in);
	process_stream_ended(process);
}

void processes_end(const struct container *container)
{
	struct process *one = process_next(NULL);
	while (one) {
		struct process *next = process_next(one);
		if (one->container == container) {
			for (unsigned i = 0; i < 2; i++)
				if (one->out[i].open) {
					source_close(&one->out[i]);
					port_word(K_EOF, one->out[i].stream, NULL, 0);
				}
			if (!one->ended)
				one->code = 128 + 9;
			say_exited(one);
		}
		one = next;
	}
}

static void reaped(struct process *process, int status)
{
	uint64_t kills = container_oom_kills(process->container);
	process->oom = kills > process->oom_kills;
	if (process->first) {
		orders_end(process->container);
		container_exited(process->container);
	}
	process_ended(process, WIFSIGNALED(status) ? 128u + (unsigned)WTERMSIG(status) : (unsigned)WEXITSTATUS(status));
}

static struct process *process_of(pid_t pid)
{
	struct process *one = NULL;
	while ((one = process_next(one)) && (one->pid != pid || one->ended))
		;
	return one;
}

void processes_reap(pid_t share)
{
	siginfo_t next = {0};
	int status;
	while (waitid(P_ALL, 0, &next, WEXITED | WNOHANG | WNOWAIT) == 0 && next.si_pid) {
		pid_t pid = next.si_pid;
		struct process *one = process_of(pid);
		next.si_pid = 0;
		/* That it was there is told first; or why it was not, and then it is nobody's, or reaped already. */
		if (one && one->order.unborn) {
			order_end(one, 0);
			one = process_of(pid);
		}
		if (waitpid(pid, &status, WNOHANG) != pid)
			continue;
		if (pid == share)
			note("the share has ended (status %d): its volumes are gone", status);
		if (one)
			reaped(one, status);
	}
}
