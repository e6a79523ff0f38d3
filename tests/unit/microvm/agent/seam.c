/*
 * The agent on the host, for tests: its core as it is, over a socket at descriptor 0; containers are names, and their
 * programs processes of whoever runs the tests; one named "stuck" is never ready, within as many milliseconds as it says.
 */
#include <errno.h>
#include <fcntl.h>
#include <pty.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core.h"

struct container {
	struct container *next;
	char id[129];
	int hold;
	pid_t pid;
	bool made, exited;
};

struct birth {
	struct unborn unborn;
	struct container *made;
	int terminal;
};

static struct container *containers;

int main(void)
{
	int port = fcntl(0, F_DUPFD_CLOEXEC, 3);
	fcntl(port, F_SETFL, fcntl(port, F_GETFL) | O_NONBLOCK);
	close(0);
	if (open("/dev/null", O_RDWR) != 0)
		return 1;
	agent_run(port, 0);
}

void machine_complete(void)
{
}

void machine_off(void)
{
	for (struct container *one = containers; one; one = one->next)
		if (!one->exited)
			kill(one->pid, SIGKILL);
	exit(0);
}

int clock_put(uint64_t nanoseconds, const struct field *entropy, struct err *err)
{
	(void)nanoseconds;
	(void)entropy;
	(void)err;
	return 0;
}

int pod_prepare(struct err *err)
{
	(void)err;
	return 0;
}

int pod_setup(const struct fields *request, struct err *err)
{
	if (!strcmp(fields_text(request, T_HOSTNAME, ""), "refused"))
		return fail(err, EPERM, "set up", "as it was told");
	return 0;
}

void pod_stats(struct reply *reply)
{
	reply_file(reply, AT_FDCWD, "/proc/self/comm");
}

struct container *container_find(const char *id)
{
	struct container *one = containers;
	while (one && (strcmp(one->id, id) || !one->made))
		one = one->next;
	return one;
}

struct container *container_next(struct container *after)
{
	struct container *one = after ? after->next : containers;
	while (one && !one->made)
		one = one->next;
	return one;
}

static int run(const struct program *program, const struct stdio *stdio, int hold, struct container *made,
	       struct unborn **out, struct err *err)
{
	char byte;
	int slave = -1, word[2];
	bool stuck = !strcmp(program->args[0], "stuck");
	struct birth *birth = calloc(1, sizeof *birth);
	*birth = (struct birth){.unborn.milliseconds = stuck ? atoi(program->args[1]) : 20000, .made = made, .terminal = -1};
	if (pipe2(word, O_CLOEXEC) < 0)
		return fail_errno(err, "pipe");
	if (program->tty) {
		if (openpty(&birth->terminal, &slave, NULL, NULL, NULL) < 0)
			return fail_errno(err, "openpty");
		fcntl(birth->terminal, F_SETFD, FD_CLOEXEC);
	}
	pid_t pid = birth->unborn.pid = fork();
	birth->unborn.word = word[0];
	if (pid < 0)
		return fail_errno(err, "fork");
	if (pid) {
		close(word[1]);
		if (slave >= 0)
			close(slave);
		*out = &birth->unborn;
		return 0;
	}
	child_signals();
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (slave >= 0) {
		setsid();
		ioctl(slave, TIOCSCTTY, 0);
	}
	/* Out of the way of 0, 1 and 2. */
	if (hold >= 0)
		hold = fcntl(hold, F_DUPFD_CLOEXEC, 10);
	dup2(slave >= 0 ? slave : stdio->in, 0);
	dup2(slave >= 0 ? slave : stdio->out, 1);
	dup2(slave >= 0 ? slave : stdio->err, 2);
	for (int fd = 3; fd < 256; fd++)
		if (fd != hold && fd != word[1])
			close(fd);
	if (stuck)
		pause();
	close(word[1]);
	if (hold >= 0 && read(hold, &byte, 1) != 1)
		_exit(1);
	execvpe(program->args[0], program->args, program->env);
	_exit(127);
}

int container_create(const struct fields *request, const struct program *program, const struct stdio *stdio,
		     struct unborn **out, struct err *err)
{
	const char *id = fields_text(request, T_CONTAINER, "");
	int pair[2];
	for (struct container *one = containers; one; one = one->next)
		if (!strcmp(one->id, id)) {
			fail(err, EEXIST, "create the container", "there is one");
			return fail_field(err, "container");
		}
	struct container *made = calloc(1, sizeof *made);
	if (!made || pipe2(pair, O_CLOEXEC) < 0)
		return fail_errno(err, "pipe");
	strncpy(made->id, id, sizeof made->id - 1);
	made->hold = pair[1];
	int result = run(program, stdio, pair[0], made, out, err);
	close(pair[0]);
	if (result < 0) {
		close(pair[1]);
		free(made);
		return -1;
	}
	made->pid = (*out)->pid;
	made->next = containers;
	containers = made;
	return 0;
}

int container_born(struct unborn *unborn, int why, struct container **out, int *terminal, struct err *err)
{
	struct birth *birth = (struct birth *)unborn;
	struct container *made = birth->made;
	*terminal = birth->terminal;
	close(unborn->word);
	if (why) {
		kill(unborn->pid, SIGKILL);
		waitpid(unborn->pid, NULL, 0);
		fail(err, why, "wait for the process", "%s", strerror(why));
		if (made) {
			made->exited = true;
			container_delete(made, err);
		}
	} else if (made) {
		made->made = true;
		*out = made;
	}
	free(birth);
	return why ? -1 : 0;
}

int container_start(struct container *container, struct err *err)
{
	return write(container->hold, "", 1) == 1 ? 0 : fail_errno(err, "start");
}

int container_exec(struct container *container, const struct program *program, const struct stdio *stdio,
		   struct unborn **out, struct err *err)
{
	(void)container;
	return run(program, stdio, -1, NULL, out, err);
}

int container_signal_all(struct container *container, int signo, struct err *err)
{
	return kill(container->pid, signo) < 0 ? fail_errno(err, "signal") : 0;
}

int container_update(struct container *container, const struct fields *request, struct err *err)
{
	struct fields it = *request;
	struct field field;
	(void)container;
	while (fields_each(&it, T_CGROUP, &field)) {
		struct fields one = field_group(&field);
		note("%s=%s", fields_text(&one, T_NAME, ""), fields_text(&one, T_VALUE, ""));
	}
	(void)err;
	return 0;
}

int container_freeze(struct container *container, bool on, struct err *err)
{
	return kill(container->pid, on ? SIGSTOP : SIGCONT) < 0 ? fail_errno(err, "freeze") : 0;
}

void container_stats(struct container *container, struct reply *reply)
{
	size_t opened = reply_open(reply, T_STATS);
	reply_text(reply, T_CONTAINER, container->id);
	reply_u64(reply, T_PROCESSES, 1);
	reply_text(reply, T_STATE, container->exited ? "stopped" : "running");
	reply_close(reply, opened);
}

/* What is named "hung" has a process that cannot be killed, for a while. */
int container_end(struct container *container, int *word, int *milliseconds, struct err *err)
{
	bool hung = !strcmp(container->id, "hung");
	(void)err;
	if (!hung && !container->exited)
		kill(container->pid, SIGKILL);
	*milliseconds = 100;
	*word = hung ? (int)syscall(SYS_pidfd_open, container->pid, 0) : open("/dev/null", O_RDONLY | O_CLOEXEC);
	return *word < 0 ? fail_errno(err, "pidfd_open") : 0;
}

bool container_over(int word)
{
	return lseek(word, 0, SEEK_CUR) == 0;
}

int container_delete(struct container *container, struct err *err)
{
	struct container **at = &containers;
	(void)err;
	if (!container->exited)
		kill(container->pid, SIGKILL);
	while (*at != container)
		at = &(*at)->next;
	*at = container->next;
	close(container->hold);
	free(container);
	return 0;
}

void container_exited(struct container *container)
{
	container->exited = true;
}

uint64_t container_oom_kills(struct container *container)
{
	(void)container;
	return 0;
}
