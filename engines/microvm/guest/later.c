#include "later.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* In the initrd: "NAME PATH...", each path after what it depends on. */
#define LIST "later"

static bool same(const char *one, const char *other)
{
	while (*one && (*one == *other || (*one == '-' && *other == '_') || (*one == '_' && *other == '-')))
		one++, other++;
	return !*one && !*other;
}

static int load(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	int failed = fd < 0 || (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST);
	if (fd >= 0)
		close(fd);
	return failed;
}

int later_load(const char *name)
{
	char line[1024], *rest;
	FILE *list = chdir(INITRD) < 0 ? NULL : fopen(LIST, "re");
	int failed = 1;
	while (list && failed && fgets(line, sizeof line, list)) {
		char *word = strtok_r(line, " \n", &rest);
		if (!word || !same(word, name))
			continue;
		failed = 0;
		while (!failed && (word = strtok_r(NULL, " \n", &rest)))
			failed = load(word + 1);
	}
	if (list)
		fclose(list);
	return failed;
}
