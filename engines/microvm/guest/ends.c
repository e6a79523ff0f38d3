/* DELETE: answered once nothing of the container is left. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core.h"

struct end {
	struct watch watch;
	struct end *next;
	struct container *container;
	int64_t due;
	uint32_t id;
	bool over;
};

static struct {
	struct end *first;
	/* Over, but perhaps still named by an event of the round. */
	struct end *past;
} ends;

static void leave(struct end *end)
{
	struct end **at = &ends.first;
	while (*at != end)
		at = &(*at)->next;
	*at = end->next;
	watch_remove(&end->watch);
	close(end->watch.fd);
	end->over = true;
	end->next = ends.past;
	ends.past = end;
}

static void forget(uint32_t id, struct container *container)
{
	struct err err;
	/* Whoever has ended by himself has his own code. */
	agent_reap();
	if (container_delete(container, &err) < 0) {
		answer_failed(id, &err);
		return;
	}
	/* By their pointer alone: it leads nowhere any more. */
	processes_end(container);
	answer_done(id);
}

static void ready(struct watch *watch, uint32_t events)
{
	struct end *end = (struct end *)watch;
	(void)events;
	if (end->over || !container_over(watch->fd))
		return;
	leave(end);
	forget(end->id, end->container);
}

int ends_mind(void)
{
	int64_t now = ends.first ? milliseconds_now() : 0, left = -1;
	struct end *next;
	for (struct end *one = ends.first; one; one = next) {
		struct err err;
		next = one->next;
		if (one->due <= now) {
			leave(one);
			fail(&err, ETIMEDOUT, "wait for the container's end", "a process of it cannot be killed");
			answer_failed(one->id, &err);
		} else if (left < 0 || one->due - now < left) {
			left = one->due - now;
		}
	}
	return (int)left;
}

void ends_sweep(void)
{
	while (ends.past) {
		struct end *one = ends.past;
		ends.past = one->next;
		free(one);
	}
}

static int try(uint32_t id, struct container *container, struct err *err)
{
	int word, milliseconds;
	for (struct end *one = ends.first; one; one = one->next)
		if (one->container == container)
			return fail(err, EALREADY, "delete the container", "it is being deleted");
	orders_end(container);
	if (container_end(container, &word, &milliseconds, err) < 0)
		return -1;
	if (container_over(word)) {
		close(word);
		forget(id, container);
		return 0;
	}
	struct end *end = calloc(1, sizeof *end);
	if (end) {
		*end = (struct end){.watch = {.ready = ready, .fd = word}, .container = container, .id = id};
		end->due = milliseconds_now() + milliseconds;
		if (watch_add(&end->watch, EPOLLPRI) == 0) {
			end->next = ends.first;
			ends.first = end;
			return 0;
		}
	}
	fail_errno(err, "wait for the container's end");
	close(word);
	free(end);
	return -1;
}

void end_begin(uint32_t id, struct container *container)
{
	struct err err;
	if (try(id, container, &err) < 0)
		answer_failed(id, &err);
}
