/* The walk of guest/paths.c by request: a line "KIND PATH" below argv[1]; its answer is the path found, or an errno. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "paths.h"

int main(int argc, char **argv)
{
	char line[9000], link[64], found[5000];
	int root = open(argv[argc - 1], O_PATH | O_DIRECTORY);
	if (root < 0)
		return 1;
	setvbuf(stdout, NULL, _IOLBF, 0);
	while (fgets(line, sizeof line, stdin)) {
		line[strcspn(line, "\n")] = 0;
		int fd = path_open(root, line + 2, (enum path_kind)(line[0] - '0'));
		if (fd < 0) {
			printf("%d\n", errno);
			continue;
		}
		snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
		ssize_t size = readlink(link, found, sizeof found - 1);
		found[size < 0 ? 0 : size] = 0;
		puts(found);
		close(fd);
	}
	close(root);
	return 0;
}
