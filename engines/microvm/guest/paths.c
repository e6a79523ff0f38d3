#include "paths.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "calls.h"

#define SYMLINKS_MAX 40

/* What is walked already, without a symlink in it and relative to the root, and what is still ahead. */
struct walk {
	char done[PATH_MAX];
	char ahead[2 * PATH_MAX];
	int symlinks;
};

int path_open_plain(int root, const char *path, int flags)
{
	return sys_openat2(root, *path ? path : ".", (uint64_t)(unsigned)flags | O_CLOEXEC, 0,
			   K_RESOLVE_BENEATH | K_RESOLVE_NO_SYMLINKS);
}

/* Takes the next component off what is ahead; false: there is none. */
static bool next(struct walk *walk, char *name, bool *last)
{
	char *begin = walk->ahead + strspn(walk->ahead, "/");
	size_t size = strcspn(begin, "/");
	if (!size)
		return false;
	if (size > NAME_MAX) {
		*name = 0;
		return true;
	}
	memcpy(name, begin, size);
	name[size] = 0;
	begin += size;
	begin += strspn(begin, "/");
	*last = !*begin;
	memmove(walk->ahead, begin, strlen(begin) + 1);
	return true;
}

static void leave(struct walk *walk)
{
	char *slash = strrchr(walk->done, '/');
	*(slash ? slash : walk->done) = 0;
}

static int enter(struct walk *walk, const char *name)
{
	size_t used = strlen(walk->done);
	int size = snprintf(walk->done + used, sizeof walk->done - used, "%s%s", used ? "/" : "", name);
	if (size < 0 || (size_t)size >= sizeof walk->done - used) {
		errno = ENAMETOOLONG;
		return -1;
	}
	return 0;
}

static int make(int parent, const char *name, bool directory)
{
	if (directory)
		return mkdirat(parent, name, 0755);
	int fd = openat(parent, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
	if (fd >= 0)
		close(fd);
	return fd < 0 ? -1 : 0;
}

/* Puts what a symlink says in front of what is ahead. */
static int follow(struct walk *walk, int symlink)
{
	char target[PATH_MAX], rest[sizeof walk->ahead];
	ssize_t size = readlinkat(symlink, "", target, sizeof target - 1);
	if (size < 0)
		return -1;
	target[size] = 0;
	if (++walk->symlinks > SYMLINKS_MAX) {
		errno = ELOOP;
		return -1;
	}
	if (*target == '/')
		*walk->done = 0;
	memcpy(rest, walk->ahead, strlen(walk->ahead) + 1);
	int all = snprintf(walk->ahead, sizeof walk->ahead, "%s/%s", target, rest);
	if (!size || all < 0 || (size_t)all >= sizeof walk->ahead) {
		errno = size ? ENAMETOOLONG : ENOENT;
		return -1;
	}
	return 0;
}

static int step(int root, struct walk *walk, const char *name, bool last, enum path_kind kind)
{
	int result = -1;
	int parent = path_open_plain(root, walk->done, O_PATH | O_DIRECTORY);
	if (parent < 0)
		return -1;
	int fd = openat(parent, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0 && errno == ENOENT && kind != PATH_ANY) {
		/* Somebody else's making it meanwhile is as good; what it has made is looked at like anything. */
		if (make(parent, name, !last || kind == PATH_DIRECTORY) == 0 || errno == EEXIST)
			fd = openat(parent, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	}
	struct stat found;
	if (fd >= 0 && fstat(fd, &found) == 0)
		result = S_ISLNK(found.st_mode) ? follow(walk, fd) : enter(walk, name);
	int error = errno;
	if (fd >= 0)
		close(fd);
	close(parent);
	errno = error;
	return result;
}

int path_open(int root, const char *path, enum path_kind kind)
{
	struct walk walk = {0};
	char name[NAME_MAX + 1];
	bool last = false;
	if (strlen(path) >= PATH_MAX) {
		errno = ENAMETOOLONG;
		return -1;
	}
	memcpy(walk.ahead, path, strlen(path) + 1);
	while (next(&walk, name, &last)) {
		if (!*name) {
			errno = ENAMETOOLONG;
			return -1;
		}
		if (strcmp(name, ".") == 0)
			continue;
		if (strcmp(name, "..") == 0)
			leave(&walk);
		else if (step(root, &walk, name, last, kind) < 0)
			return -1;
	}
	return path_open_plain(root, walk.done, O_PATH | (kind == PATH_DIRECTORY ? O_DIRECTORY : 0));
}

ssize_t path_read(int dir, const char *path, void *data, size_t size)
{
	int fd = openat(dir, path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
	if (fd < 0)
		return -1;
	size_t done = 0;
	ssize_t got = 0;
	while (done < size && (got = read(fd, (char *)data + done, size - done)) > 0)
		done += (size_t)got;
	int error = errno;
	close(fd);
	errno = error;
	return got < 0 ? -1 : (ssize_t)done;
}
