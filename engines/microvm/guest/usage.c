#include "usage.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "cgroups.h"

/* Of descriptors and processes that are looked at: whoever has more is told of these alone, and holds up nobody. */
#define SEEN_MAX 16384

struct descriptors {
	uint64_t processes, all, sockets;
};

static void look(pid_t pid, void *data)
{
	static const char socket[] = "socket:";
	struct descriptors *found = data;
	struct dirent *entry;
	char path[32], target[sizeof socket];
	if (found->all + found->processes++ >= SEEN_MAX)
		return;
	snprintf(path, sizeof path, "/proc/%d/fd", (int)pid);
	DIR *directory = opendir(path);
	if (!directory)
		return;
	while (found->all < SEEN_MAX && (entry = readdir(directory))) {
		if (entry->d_name[0] == '.')
			continue;
		found->all++;
		ssize_t size = readlinkat(dirfd(directory), entry->d_name, target, sizeof socket - 1);
		if (size == sizeof socket - 1 && memcmp(target, socket, sizeof socket - 1) == 0)
			found->sockets++;
	}
	closedir(directory);
}

void usage_reply(struct reply *reply, int cgroup, int layer, pid_t first)
{
	struct descriptors found = {0};
	struct rlimit files;
	struct statfs room;
	char text[512];
	cgroup_each(cgroup, look, &found);
	int size = snprintf(text, sizeof text, "descriptors %" PRIu64 "\nsockets %" PRIu64 "\n", found.all, found.sockets);
	if (prlimit(first, RLIMIT_NOFILE, NULL, &files) == 0 && files.rlim_cur != RLIM_INFINITY)
		size += snprintf(text + size, sizeof text - (size_t)size, "open_files %" PRIu64 "\n", (uint64_t)files.rlim_cur);
	if (layer >= 0 && fstatfs(layer, &room) == 0)
		size += snprintf(text + size, sizeof text - (size_t)size,
				 "layer_size %" PRIu64 "\nlayer_inodes %" PRIu64 "\nlayer_inodes_free %" PRIu64 "\n",
				 (uint64_t)room.f_blocks * (uint64_t)room.f_bsize, (uint64_t)room.f_files,
				 (uint64_t)room.f_ffree);
	size_t opened = reply_open(reply, T_FILE);
	reply_text(reply, T_NAME, "forgeone.stat");
	reply_bytes(reply, T_CONTENT, text, (size_t)size);
	reply_close(reply, opened);
}
