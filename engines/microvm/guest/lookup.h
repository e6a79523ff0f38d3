/* Which file a program is. */
#pragma once

#include "agent.h"

/*
 * In the process that will become it, in the container's root: the path of the file that args[0] names, looked for in
 * the program's PATH and as its user may see it. `path` has room for PATH_MAX bytes. -1 with *err, whose field is the
 * command.
 */
int lookup_program(const struct program *program, char *path, struct err *err);
