/* CREATE and EXEC: answered once their process is there, or cannot be. */
#include <errno.h>
#include <signal.h>
#include <unistd.h>

#include "core.h"

static struct process *first;

static void answer(const struct process *process, int result, const struct err *err)
{
	unsigned char payload[64];
	struct reply reply = {.data = payload, .room = sizeof payload};
	if (result < 0) {
		answer_failed(process->order.id, err);
		return;
	}
	reply_u64(&reply, T_PID, (uint64_t)process->pid);
	port_word(K_REPLY, process->order.id, reply.data, reply.size);
}

static void leave(struct process *process)
{
	struct process **at = &first;
	while (*at != process)
		at = &(*at)->order.next;
	*at = process->order.next;
	watch_remove(&process->order.watch);
	process->order.unborn = NULL;
}

void order_end(struct process *process, int why)
{
	struct order *order = &process->order;
	struct container *container = order->container;
	struct err err, ignored;
	struct unborn *unborn = order->unborn;
	int terminal = -1;
	leave(process);
	int result = container_born(unborn, why, &container, &terminal, &err);
	if (result == 0 && (result = process_terminal(process, terminal, &err)) < 0) {
		kill(process->pid, SIGKILL);
		if (!order->container)
			container_delete(container, &ignored);
	} else if (result < 0 && terminal >= 0) {
		close(terminal);
	}
	answer(process, result, &err);
	if (result < 0) {
		process_drop(process);
		return;
	}
	process->container = container;
	process->first = !order->container;
	source_begin(&process->out[0]);
	source_begin(&process->out[1]);
}

void orders_end(const struct container *container)
{
	struct process *next;
	for (struct process *one = first; one; one = next) {
		next = one->order.next;
		if (one->order.container == container)
			order_end(one, ESRCH);
	}
}

int orders_mind(void)
{
	int64_t now = first ? milliseconds_now() : 0, left = -1;
	struct process *next;
	for (struct process *one = first; one; one = next) {
		next = one->order.next;
		if (one->order.due <= now)
			order_end(one, ETIMEDOUT);
		else if (left < 0 || one->order.due - now < left)
			left = one->order.due - now;
	}
	return (int)left;
}

static void ready(struct watch *watch, uint32_t events)
{
	struct process *process = ((struct order *)watch)->process;
	(void)events;
	if (process->order.unborn)
		order_end(process, 0);
}

static int begin(struct process *process, const struct fields *request, const struct program *program, struct err *err)
{
	struct order *order = &process->order;
	struct stdio stdio;
	if (process_stdio(process, program, &stdio, err) < 0)
		return -1;
	process->oom_kills = order->container ? container_oom_kills(order->container) : 0;
	int result = order->container ? container_exec(order->container, program, &stdio, &order->unborn, err)
				      : container_create(request, program, &stdio, &order->unborn, err);
	stdio_close(&stdio);
	return result;
}

static int try(uint32_t id, const struct fields *request, struct container *container, struct err *err)
{
	struct fields group = fields_group(request, T_PROGRAM);
	struct container *none;
	struct program program;
	int terminal;
	if (!fields_has(request, T_PROCESS)) {
		fail(err, EBADMSG, "read the request", "process: is missing");
		return fail_field(err, "process");
	}
	if (program_parse(&group, &program, err) < 0)
		return -1;
	struct process *process = process_new((uint32_t)fields_u64(request, T_PROCESS, 0), err);
	if (process)
		process->order = (struct order){.id = id, .container = container, .process = process};
	int result = process ? begin(process, request, &program, err) : -1;
	program_free(&program);
	if (result == 0) {
		struct order *order = &process->order;
		process->pid = order->unborn->pid;
		order->watch = (struct watch){.ready = ready, .fd = order->unborn->word};
		order->due = milliseconds_now() + order->unborn->milliseconds;
		order->next = first;
		if (watch_add(&order->watch, EPOLLIN) == 0) {
			first = process;
			return 0;
		}
		int number = errno;
		container_born(order->unborn, number, &none, &terminal, err);
		order->unborn = NULL;
	}
	if (process)
		process_drop(process);
	return -1;
}

void order_begin(uint32_t id, const struct fields *request, struct container *container)
{
	struct err err;
	if (try(id, request, container, &err) < 0)
		answer_failed(id, &err);
}
