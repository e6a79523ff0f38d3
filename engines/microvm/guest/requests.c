#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "core.h"
#include "fields.h"

/* The host's answer to POWEROFF is the machine's end; it waits for it no longer than this. */
#define GOODBYE_MS 1000

static struct {
	bool shared, set_up;
	unsigned char answer[FO_REQUEST_MAX];
} requests;

void request_shared(void)
{
	requests.shared = true;
}

void answer_done(uint32_t id)
{
	port_word(K_REPLY, id, NULL, 0);
}

void answer_failed(uint32_t id, const struct err *err)
{
	struct reply reply = {.data = requests.answer, .room = sizeof requests.answer};
	reply_u64(&reply, T_ERRNO, (uint64_t)(err->number > 0 && err->number < 4096 ? err->number : EIO));
	reply_text(&reply, T_STEP, err->step);
	reply_text(&reply, T_MESSAGE, err->message);
	if (err->field[0])
		reply_text(&reply, T_FIELD, err->field);
	port_word(K_FAILED, id, reply.data, reply.size);
}

static int hello(const struct fields *request, struct reply *reply, struct err *err)
{
	struct utsname name;
	if (fields_u64(request, T_VERSION, 0) != FO_VERSION)
		return fail(err, EPROTONOSUPPORT, "greet", "version %u is spoken here", FO_VERSION);
	if (uname(&name) < 0)
		return fail_errno(err, "greet");
	reply_u64(reply, T_VERSION, FO_VERSION);
	reply_text(reply, T_RELEASE, name.release);
	if (requests.shared)
		reply_text(reply, T_FEATURE, "share");
	return 0;
}

static int clock_of(const struct fields *request, struct err *err)
{
	struct field entropy = {.size = 0};
	fields_find(request, T_ENTROPY, &entropy);
	int result = clock_put(fields_u64(request, T_TIME, 0), &entropy, err);
	/* Processes of containers begin with the memory of this one. */
	if (entropy.size)
		explicit_bzero((void *)(uintptr_t)entropy.data, entropy.size);
	return result;
}

static int setup(const struct fields *request, struct err *err)
{
	if (requests.set_up)
		return fail(err, EALREADY, "set up", "the machine is a pod's already");
	/* One that failed half-way is nobody's any more. */
	requests.set_up = true;
	return clock_of(request, err) < 0 ? -1 : pod_setup(request, err);
}

static int container_of(const struct fields *request, struct container **out, struct err *err)
{
	const char *id = fields_text(request, T_CONTAINER, "");
	*out = container_find(id);
	if (*out)
		return 0;
	fail(err, ENOENT, "find the container", "there is no container %s", id);
	return fail_field(err, "container");
}

static int signal_of(const struct fields *request, struct err *err)
{
	int signo = (int)fields_u64(request, T_SIGNO, 0);
	struct container *container;
	struct process *process;
	if (fields_has(request, T_PROCESS)) {
		process = process_find((uint32_t)fields_u64(request, T_PROCESS, 0));
	} else {
		if (container_of(request, &container, err) < 0)
			return -1;
		if (fields_bool(request, T_ALL))
			return container_signal_all(container, signo, err);
		process = process_first(container);
	}
	if (process && process->in.socket) {
		process_hang_up(process);
		return 0;
	}
	/* Until it has been reaped its pid is nobody else's. */
	if (!process || process->ended || !process->pid)
		return fail(err, ESRCH, "signal", "the process has ended");
	return kill(process->pid, signo) < 0 ? fail_errno(err, "signal") : 0;
}

static int stats(const struct fields *request, struct reply *reply, struct err *err)
{
	struct fields it = *request;
	struct container *container = NULL;
	struct field field;
	if (!fields_has(request, T_CONTAINER))
		while ((container = container_next(container)))
			container_stats(container, reply);
	while (fields_each(&it, T_CONTAINER, &field)) {
		container = container_find(field_text(&field));
		if (container)
			container_stats(container, reply);
	}
	pod_stats(reply);
	return reply->over ? fail(err, EMSGSIZE, "measure", "the answer is too large") : 0;
}

static int quiesce(struct err *err)
{
	if (requests.set_up)
		return fail(err, EBUSY, "quiesce", "the machine is a pod's already");
	machine_complete();
	if (pod_prepare(err) < 0)
		return -1;
	sync();
	/* What was read to boot would be saved, and loaded by each machine. */
	file_put(AT_FDCWD, "/proc/sys/vm/drop_caches", "3", 1);
	return 0;
}

static int on_container(unsigned kind, const struct fields *request, struct err *err)
{
	struct container *container;
	if (container_of(request, &container, err) < 0)
		return -1;
	if (kind == K_START)
		return container_start(container, err);
	if (kind == K_UPDATE)
		return container_update(container, request, err);
	return container_freeze(container, fields_bool(request, T_ON), err);
}

static int answer(unsigned kind, const struct fields *request, struct reply *reply, struct err *err)
{
	switch (kind) {
	case K_HELLO:
		return hello(request, reply, err);
	case K_CLOCK:
		return clock_of(request, err);
	case K_SETUP:
		return setup(request, err);
	case K_QUIESCE:
		return quiesce(err);
	case K_POWEROFF:
		return 0;
	}
	if (!requests.set_up)
		return fail(err, EPERM, "begin", "the machine is no pod's yet");
	switch (kind) {
	case K_SIGNAL:
		return signal_of(request, err);
	case K_STATS:
		return stats(request, reply, err);
	default:
		return on_container(kind, request, err);
	}
}

static void stream_word(unsigned kind, uint32_t id, const unsigned char *payload, size_t size)
{
	struct process *process = process_find(id / 4);
	unsigned which = id % 4;
	uint64_t credit = 0;
	if (id / 4 >= FO_NUMBER_MAX || (kind == K_CREDIT ? which != 1 && which != 2 : which != 0))
		die("a frame of kind %u for stream %u", kind, id);
	if (kind == K_DATA ? !size || size > FO_DATA_MAX : size != (kind == K_CREDIT ? sizeof credit : 0))
		die("a frame of kind %u with %zu bytes", kind, size);
	/* It may have ended meanwhile. */
	if (!process)
		return;
	if (kind == K_DATA) {
		sink_data(&process->in, payload, size);
	} else if (kind == K_EOF) {
		sink_end(&process->in);
	} else {
		for (unsigned i = 0; i < sizeof credit; i++)
			credit |= (uint64_t)payload[i] << (8 * i);
		source_credit(&process->out[which - 1], credit);
	}
}

void request_handle(unsigned kind, uint32_t id, unsigned char *payload, size_t size)
{
	const struct group *group = fields_of(kind);
	struct reply reply = {.data = requests.answer, .room = sizeof requests.answer};
	struct fields request;
	struct err err;
	if (kind == K_DATA || kind == K_EOF || kind == K_CREDIT) {
		stream_word(kind, id, payload, size);
		return;
	}
	if (!group)
		die("a frame of kind %u", kind);
	int result = fields_check(group, payload, size, &request, &err);
	if (kind == K_RESIZE) {
		struct process *process = process_find(id);
		if (result < 0)
			die("a size: %s", err.message);
		if (process)
			process_resize(process, (unsigned)fields_u64(&request, T_WIDTH, 0), (unsigned)fields_u64(&request, T_HEIGHT, 0));
		return;
	}
	if (result == 0 && kind == K_DIAL && requests.set_up) {
		dial(id, (uint32_t)fields_u64(&request, T_PROCESS, 0), (unsigned)fields_u64(&request, T_PORT, 0));
		return;
	}
	if (result == 0 && (kind == K_CREATE || kind == K_EXEC || kind == K_DELETE) && requests.set_up) {
		struct container *container = NULL;
		result = kind == K_CREATE ? 0 : container_of(&request, &container, &err);
		if (result == 0) {
			if (kind == K_DELETE)
				end_begin(id, container);
			else
				order_begin(id, &request, container);
			return;
		}
	}
	if (result == 0)
		result = answer(kind, &request, &reply, &err);
	if (result == 0 && reply.over)
		result = fail(&err, EMSGSIZE, "answer", "the answer is too large");
	if (result < 0)
		answer_failed(id, &err);
	else
		port_word(K_REPLY, id, reply.data, reply.size);
	if (kind == K_SETUP) {
		/* While the host goes on with what it has to do for the pod. */
		port_out();
		machine_complete();
	}
	if (kind == K_POWEROFF && result == 0) {
		port_drain(GOODBYE_MS);
		machine_off();
	}
}
