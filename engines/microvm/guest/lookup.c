#include "lookup.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "calls.h"

#define FIELD "command"

static int not_found(struct err *err, int error, const char *name, const char *why)
{
	fail(err, error, "find the program", "exec: \"%s\": %s", name, why);
	return fail_field(err, FIELD);
}

/* 0, or why it cannot be executed. */
static int check(const char *path)
{
	struct stat found;
	if (stat(path, &found) < 0)
		return errno;
	if (S_ISDIR(found.st_mode))
		return EISDIR;
	if (!S_ISREG(found.st_mode))
		return EACCES;
	return syscall(FO_SYS_faccessat2, AT_FDCWD, path, X_OK, AT_EACCESS) < 0 ? errno : 0;
}

static const char *variable(const struct program *program, const char *name)
{
	size_t length = strlen(name);
	for (char **each = program->env; *each; each++)
		if (strncmp(*each, name, length) == 0 && (*each)[length] == '=')
			return *each + length + 1;
	return "";
}

static int search(const char *name, const char *list, char *path)
{
	int error = ENOENT;
	for (const char *at = list; *at; at += *at == ':') {
		size_t length = strcspn(at, ":");
		int size = snprintf(path, PATH_MAX, "%.*s/%s", (int)length, at, name);
		at += length;
		/* Relative ones would name other files in other directories. */
		if (*path != '/' || size < 0 || size >= PATH_MAX)
			continue;
		int found = check(path);
		if (!found)
			return 0;
		if (found == EACCES)
			error = EACCES;
	}
	return error;
}

static int look(const struct program *program, char *path, struct err *err)
{
	const char *name = program->args[0];
	int error;
	if (!strchr(name, '/')) {
		error = *name ? search(name, variable(program, "PATH"), path) : ENOENT;
		if (!error)
			return 0;
		return not_found(err, error, name,
				 error == EACCES ? "permission denied" : "executable file not found in $PATH");
	}
	/* A relative one is looked for where the program will be. */
	error = *name != '/' && chdir(program->cwd) < 0 ? errno : check(name);
	if (!error && (size_t)snprintf(path, PATH_MAX, "%s", name) >= PATH_MAX)
		error = ENAMETOOLONG;
	if (!error)
		return 0;
	char why[256];
	const char *text = error == ENOENT ? "no such file or directory" : strerror(error);
	snprintf(why, sizeof why, "stat %.150s: %s", name, text);
	if (error == EACCES || error == EISDIR)
		return not_found(err, error, name, error == EACCES ? "permission denied" : "is a directory");
	return not_found(err, error, name, why);
}

/* What of the root's power over files the program will have. */
static int set_effective(uint64_t mask)
{
	struct k_cap_header header = {.version = K_CAPABILITY_VERSION_3};
	struct k_cap_data data[2];
	if (syscall(SYS_capget, &header, data) < 0)
		return -1;
	for (int half = 0; half < 2; half++)
		data[half].effective = data[half].permitted & (uint32_t)(mask >> (32 * half));
	return (int)syscall(SYS_capset, &header, data);
}

int lookup_program(const struct program *program, char *path, struct err *err)
{
	uint64_t effective = program->uid ? program->caps.ambient : program->caps.effective;
	/* The real user stays root, and with it what is permitted; so there is a way back. */
	if (setgroups(program->group_count, program->groups) < 0 || setegid(program->gid) < 0 ||
	    seteuid(program->uid) < 0 || set_effective(effective) < 0)
		return fail_errno(err, "look as the program's user");
	int result = look(program, path, err);
	if (set_effective(UINT64_MAX) < 0 || seteuid(0) < 0 || setegid(0) < 0 || setgroups(0, NULL) < 0)
		return fail_errno(err, "look as the program's user");
	return result;
}
