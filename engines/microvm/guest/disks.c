#include "disks.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kernel.h"

#define UNITS "/sys/bus/scsi/devices"
#define BLOCKS "/sys/block"
#define SCAN "/sys/class/scsi_host/host0/scan"
/* Of one that stands for a disk to come. */
#define EMPTY 512
#define WAIT_MS 5000

struct uevent_address {
	unsigned short family, pad;
	uint32_t pid, groups;
};

/* A directory below UNITS is named HOST:CHANNEL:TARGET:LUN; there is one host. */
static bool is_unit(const char *name, unsigned lun)
{
	unsigned host, channel, target, unit;
	int end = 0;
	return sscanf(name, "%u:%u:%u:%u%n", &host, &channel, &target, &unit, &end) == 4 && !name[end] && !channel &&
	       !target && unit == lun;
}

static bool unit_name(unsigned lun, char *name, size_t size)
{
	DIR *units = opendir(UNITS);
	bool found = false;
	struct dirent *entry;
	if (!units)
		return false;
	while (!found && (entry = readdir(units)))
		if (is_unit(entry->d_name, lun))
			found = (size_t)snprintf(name, size, "%s", entry->d_name) < size;
	closedir(units);
	return found;
}

static bool disk_name(const char *unit, char *name, size_t size)
{
	char path[128];
	bool found = false;
	struct dirent *entry;
	snprintf(path, sizeof path, UNITS "/%s/block", unit);
	DIR *blocks = opendir(path);
	if (!blocks)
		return false;
	while (!found && (entry = readdir(blocks)))
		if (entry->d_name[0] != '.')
			found = (size_t)snprintf(name, size, "%s", entry->d_name) < size;
	closedir(blocks);
	return found;
}

static bool serial_of(const char *disk, char *serial, size_t size)
{
	char path[320];
	snprintf(path, sizeof path, BLOCKS "/%s/serial", disk);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t got = fd < 0 ? -1 : read(fd, serial, size - 1);
	if (fd >= 0)
		close(fd);
	serial[got > 0 ? got : 0] = 0;
	serial[strcspn(serial, "\n")] = 0;
	return got > 0;
}

/*
 * Of a machine without SCSI: Cloud Hypervisor's disks have the number in their serial number. Firecracker's are all there
 * from the beginning, in the order of their numbers, and have serial numbers of its own making.
 */
static bool virtio_name(unsigned lun, char *name, size_t size)
{
	char wanted[32], serial[64];
	bool found = false, numbered = false;
	struct dirent *entry;
	DIR *blocks = opendir(BLOCKS);
	snprintf(wanted, sizeof wanted, "forgeone-%u", lun);
	while (blocks && !found && (entry = readdir(blocks))) {
		if (strncmp(entry->d_name, "vd", 2) || !serial_of(entry->d_name, serial, sizeof serial))
			continue;
		numbered |= strncmp(serial, "forgeone-", 9) == 0;
		if (strcmp(serial, wanted) == 0)
			found = (size_t)snprintf(name, size, "%s", entry->d_name) < size;
	}
	if (blocks)
		closedir(blocks);
	if (!found && !numbered && lun < 26)
		found = (size_t)snprintf(name, size, "vd%c", (char)('a' + lun)) < size;
	return found;
}

/* Whether it is there by now: its node comes after its name, and its size after its node. */
static bool look(unsigned lun, struct disk *out)
{
	char unit[64], name[24];
	bool scsi = unit_name(lun, unit, sizeof unit);
	if (scsi ? !disk_name(unit, name, sizeof name) : !virtio_name(lun, name, sizeof name))
		return false;
	snprintf(out->path, sizeof out->path, "/dev/%s", name);
	int fd = open(out->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return false;
	bool filled = lseek(fd, 0, SEEK_END) > EMPTY;
	close(fd);
	return filled;
}

static int listen_to_kernel(struct err *err)
{
	struct uevent_address address = {.family = AF_NETLINK, .groups = 1};
	int fd = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, K_NETLINK_KOBJECT_UEVENT);
	if (fd < 0)
		return fail_errno(err, "socket kobject_uevent");
	if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0) {
		fail_errno(err, "bind kobject_uevent");
		close(fd);
		return -1;
	}
	return fd;
}

/* One that was there before the driver, or that came while it had no room for the word of it, it does not know. */
static void scan(unsigned lun)
{
	char place[32];
	int size = snprintf(place, sizeof place, "0 0 %u", lun);
	file_put(AT_FDCWD, SCAN, place, (size_t)size);
}

int disk_find(unsigned lun, struct disk *out, struct err *err)
{
	if (look(lun, out))
		return 0;
	int events = listen_to_kernel(err);
	if (events < 0)
		return -1;
	scan(lun);
	int64_t end = milliseconds_now() + WAIT_MS, left;
	bool found;
	while (!(found = look(lun, out)) && (left = end - milliseconds_now()) > 0) {
		char word[8192];
		struct pollfd wait = {.fd = events, .events = POLLIN};
		poll(&wait, 1, (int)left);
		/* What they say is of no matter: one more look is taken after any. */
		while (recv(events, word, sizeof word, 0) >= 0 || errno == ENOBUFS)
			;
	}
	close(events);
	return found ? 0 : fail(err, ENODEV, "find the disk", "unit %u is not in the machine", lun);
}
