#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "agent.h"

/* struct sock_filter, and how many of them the kernel takes. */
#define FILTER_SIZE 8u

static size_t count_of(const struct fields *group, unsigned tag, size_t *bytes)
{
	struct fields it = *group;
	struct field field;
	size_t count = 0;
	while (fields_each(&it, tag, &field)) {
		*bytes += field.size + 1;
		count++;
	}
	return count;
}

static char **texts(const struct fields *group, unsigned tag, char ***slot, char **text)
{
	char **begin = *slot;
	struct fields it = *group;
	struct field field;
	while (fields_each(&it, tag, &field)) {
		memcpy(*text, field.data, field.size + 1);
		*(*slot)++ = *text;
		*text += field.size + 1;
	}
	*(*slot)++ = NULL;
	return begin;
}

static void numbers(const struct fields *group, struct program *out)
{
	struct fields caps = fields_group(group, T_CAPS), it = *group;
	struct field field;
	out->caps.bounding = fields_u64(&caps, T_BOUNDING, 0);
	out->caps.effective = fields_u64(&caps, T_EFFECTIVE, 0);
	out->caps.permitted = fields_u64(&caps, T_PERMITTED, 0);
	out->caps.inheritable = fields_u64(&caps, T_INHERITABLE, 0);
	out->caps.ambient = fields_u64(&caps, T_AMBIENT, 0);
	while (fields_each(&it, T_GROUP, &field))
		out->groups[out->group_count++] = (gid_t)field_u64(&field);
	it = *group;
	while (fields_each(&it, T_RLIMIT, &field)) {
		struct fields one = field_group(&field);
		struct limit *limit = &out->limits[out->limit_count++];
		limit->resource = (int)fields_u64(&one, T_RESOURCE, 0);
		limit->value.rlim_cur = fields_u64(&one, T_SOFT, 0);
		limit->value.rlim_max = fields_u64(&one, T_HARD, 0);
	}
	out->uid = (uid_t)fields_u64(group, T_UID, 0);
	out->gid = (gid_t)fields_u64(group, T_GID, 0);
	out->umask = (mode_t)fields_u64(group, T_UMASK, 022);
	out->tty = fields_bool(group, T_TTY);
	out->stdin_open = fields_bool(group, T_STDIN);
	out->no_new_privs = fields_bool(group, T_NO_NEW_PRIVS);
	out->has_oom_score_adj = fields_has(group, T_OOM_SCORE_ADJ);
	out->oom_score_adj = (int)fields_u64(group, T_OOM_SCORE_ADJ, 1000) - 1000;
	out->seccomp_flags = (unsigned)fields_u64(group, T_SECCOMP_FLAGS, 0);
}

int program_parse(const struct fields *group, struct program *out, struct err *err)
{
	struct field seccomp = {.size = 0};
	size_t bytes = 0, none = 0;
	size_t args = count_of(group, T_ARG, &bytes), env = count_of(group, T_ENV, &bytes);
	size_t groups = count_of(group, T_GROUP, &none), limits = count_of(group, T_RLIMIT, &none);
	struct fields it = *group;
	struct field field;

	*out = (struct program){.memory = NULL};
	while (fields_each(&it, T_RLIMIT, &field)) {
		struct fields one = field_group(&field);
		if (fields_u64(&one, T_SOFT, 0) > fields_u64(&one, T_HARD, 0)) {
			fail(err, EINVAL, "read the program", "a limit that is softer than its hard one");
			return fail_field(err, "rlimits");
		}
	}
	if (fields_find(group, T_SECCOMP, &seccomp) && seccomp.size % FILTER_SIZE) {
		fail(err, EINVAL, "read the program", "%u bytes are no filter", seccomp.size);
		return fail_field(err, "seccomp");
	}
	const char *cwd = fields_text(group, T_CWD, "/");
	bytes += strlen(cwd) + 1;
	/* What needs the strictest alignment comes first. */
	size_t size = (args + env + 2) * sizeof(char *) + limits * sizeof(struct limit) + seccomp.size +
		      groups * sizeof(gid_t) + bytes;
	char *at = out->memory = malloc(size);
	if (!at)
		return fail_errno(err, "read the program");
	char **slot = (char **)(void *)at;
	at += (args + env + 2) * sizeof(char *);
	out->limits = (struct limit *)(void *)at;
	at += limits * sizeof(struct limit);
	if (seccomp.size) {
		out->seccomp = (struct sock_filter *)(void *)at;
		out->seccomp_count = (unsigned short)(seccomp.size / FILTER_SIZE);
		memcpy(at, seccomp.data, seccomp.size);
	}
	at += seccomp.size;
	out->groups = (gid_t *)(void *)at;
	at += groups * sizeof(gid_t);
	out->args = texts(group, T_ARG, &slot, &at);
	out->env = texts(group, T_ENV, &slot, &at);
	out->cwd = memcpy(at, cwd, strlen(cwd) + 1);
	numbers(group, out);
	return 0;
}

void program_free(struct program *program)
{
	free(program->memory);
	program->memory = NULL;
}
