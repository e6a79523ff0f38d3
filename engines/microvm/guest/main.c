#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core.h"
#include "kernel.h"
#include "later.h"
#include "share.h"
#include "vsock.h"

/* In the initrd: an absolute path a line, in the order in which they are loaded; the rest is for containers alone. */
#define MODULES "modules"
#define REST "rest"
#define PORTS "/sys/class/virtio-ports"
#define SCAN "/sys/module/scsi_mod/parameters/scan"
/* Of descriptors, for all that descends from here; what fs.nr_open allows at most. */
#define FILES (1024 * 1024)
/* The devices are there before the kernel executes us, their ports a message to the host later. */
#define PORTS_MS 30000
#define PATH_SIZE 300

void machine_off(void)
{
	sync();
	reboot(RB_POWER_OFF);
	/* A machine without a switch. */
	reboot(RB_AUTOBOOT);
	_exit(1);
}

/* Nobody but the kernel's log can be told. */
static _Noreturn void stop(const char *what)
{
	char text[256];
	int number = errno, size = snprintf(text, sizeof text, "forgeone: %s: %s\n", what, strerror(number));
	file_put(AT_FDCWD, "/dev/kmsg", text, (size_t)size);
	machine_off();
}

static void mount_at(const char *type, const char *target, unsigned long flags, const char *options)
{
	mkdir(target, 0755);
	if (mount(type, target, type, flags, options) < 0)
		stop(target);
}

/*
 * A container that may write to its group may not lift the limits of it. With "favordynmods", from Linux 6.0 on, a process
 * that joins a group does not wait for RCU, 10 ms.
 */
static void mount_cgroups(const char *target)
{
	const unsigned long flags = MS_NOSUID | MS_NODEV | MS_NOEXEC;
	if (mount("cgroup2", target, "cgroup2", flags, "nsdelegate,favordynmods") < 0)
		mount_at("cgroup2", target, flags, "nsdelegate");
}

/* The initrd cannot be pivoted away from: the root becomes a tmpfs on it. */
static void enter_root(void)
{
	mount_at("tmpfs", "/base", MS_NOSUID | MS_NODEV, "mode=755");
	/* What the kernel executes has the root that its first process has. */
	if (mkdir("/base" INITRD, 0700) < 0 || mount("/", "/base" INITRD, NULL, MS_BIND, NULL) < 0)
		stop(INITRD);
	if (chdir("/base") < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0)
		stop("enter the root");
	if (mount(NULL, "/", NULL, MS_PRIVATE | MS_REC, NULL) < 0)
		stop("make mounts private");
	mount_at("proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	mount_at("sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	mount_at("devtmpfs", "/dev", MS_NOSUID, "mode=755");
	mount_at("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "mode=620,ptmxmode=666");
	mount_at("tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=755");
	mount_cgroups("/sys/fs/cgroup");
	mkdir("/tmp", 01777);
}

static void load(int initrd, const char *path)
{
	int fd = openat(initrd, path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST))
		stop(path);
	close(fd);
	/* The initrd is memory. */
	unlinkat(initrd, path, 0);
}

static void load_modules(int initrd, const char *name)
{
	char line[512];
	int fd = openat(initrd, name, O_RDONLY | O_CLOEXEC);
	FILE *list = fd < 0 ? NULL : fdopen(fd, "r");
	if (!list && errno != ENOENT)
		stop(name);
	while (list && fgets(line, sizeof line, list)) {
		line[strcspn(line, "\n")] = 0;
		/* There are no disks yet. To look at each of a controller's 256 places takes as long as half of the modules. */
		file_put(AT_FDCWD, SCAN, "manual", 6);
		if (line[0] == '/')
			load(initrd, line + 1);
	}
	if (list)
		fclose(list);
}

/*
 * Until it executes its program a process of a container's is the agent, as is whoever executes /proc/self/exe then: by
 * that, and the initrd's other mount, nobody writes to the file.
 */
static void seal(int initrd)
{
	const unsigned long flags = MS_REMOUNT | MS_BIND | MS_RDONLY;
	if (mount(NULL, INITRD, NULL, flags, NULL) < 0 || fchdir(initrd) < 0 || mount(NULL, ".", NULL, flags, NULL) < 0 ||
	    chdir("/") < 0)
		stop("seal the initrd");
	close(initrd);
}

static int initrd = -1;

void machine_complete(void)
{
	if (initrd < 0)
		return;
	load_modules(initrd, REST);
	/* The driver looks again when it has missed that one came. */
	file_put(AT_FDCWD, SCAN, "sync", 4);
	seal(initrd);
	initrd = -1;
}

/* The path of the port of that name; it may not be there yet. */
static bool find_port(const char *name, char *path, size_t size)
{
	bool found = false;
	DIR *ports = opendir(PORTS);
	struct dirent *one;
	while (ports && !found && (one = readdir(ports))) {
		char place[512], content[128] = "";
		snprintf(place, sizeof place, "%s/%s/name", PORTS, one->d_name);
		int fd = open(place, O_RDONLY | O_CLOEXEC);
		ssize_t got = fd < 0 ? -1 : read(fd, content, sizeof content - 1);
		if (fd >= 0)
			close(fd);
		content[got > 0 ? strcspn(content, "\n") : 0] = 0;
		found = strcmp(content, name) == 0;
		if (found)
			snprintf(path, size, "/dev/%s", one->d_name);
	}
	if (ports)
		closedir(ports);
	return found;
}

/* `events`: the kernel's words about devices, from before their drivers were loaded. */
static void wait_for_port(int events, const char *name, char *path, size_t size)
{
	char word[4096];
	struct pollfd one = {.fd = events, .events = POLLIN};
	while (!find_port(name, path, size)) {
		if (poll(&one, 1, PORTS_MS) <= 0) {
			errno = ETIMEDOUT;
			stop(name);
		}
		while (recv(events, word, sizeof word, MSG_DONTWAIT) > 0)
			;
	}
}

struct uevent_address {
	unsigned short family, pad;
	uint32_t pid, groups;
};

static int listen_for_devices(void)
{
	struct uevent_address address = {.family = AF_NETLINK, .groups = 1};
	int fd = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, K_NETLINK_KOBJECT_UEVENT);
	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0)
		stop("listen for devices");
	return fd;
}

static void settle(void)
{
	struct rlimit files = {FILES, FILES}, processes = {RLIM_INFINITY, RLIM_INFINITY};
	/* 0, 1 and 2 are never a file that anybody means. */
	int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	while (fd >= 0 && fd <= 2)
		fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (fd < 0)
		stop("/dev/null");
	close(fd);
	/* Nor are its children to be looked into from the moment at which they are in a container's PID namespace. */
	prctl(PR_SET_DUMPABLE, 0);
	reboot(RB_DISABLE_CAD);
	umask(022);
	setrlimit(RLIMIT_NOFILE, &files);
	/* The kernel's own is what a small machine has memory for, and counts a user's in all containers. */
	setrlimit(RLIMIT_NPROC, &processes);
	file_put(AT_FDCWD, "/proc/self/oom_score_adj", "-1000", 5);
	/* A kernel in trouble ends the machine. */
	file_put(AT_FDCWD, "/proc/sys/kernel/panic", "-1", 2);
	file_put(AT_FDCWD, "/proc/sys/kernel/modprobe", INITRD "/init", sizeof INITRD "/init" - 1);
}

/* The process that serves the share; the control port is put into `port`. */
static pid_t open_ports(int events, int *port)
{
	char control[PATH_SIZE], share[PATH_SIZE];
	const char *step = "";
	wait_for_port(events, FO_CONTROL_PORT, control, sizeof control);
	wait_for_port(events, FO_SHARE_PORT, share, sizeof share);
	pid_t server = share_start(share, &step);
	if (server < 0)
		stop(step);
	*port = open(control, O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (*port < 0)
		stop(control);
	return server;
}

/* The same where the ports are connections to the host. */
static pid_t open_connections(int *port)
{
	const char *step = "";
	int share = vsock_connect(FO_VSOCK_PORT + 1);
	if (share < 0)
		stop(FO_SHARE_PORT);
	pid_t server = share_carry(share, SHARE_POINT, SHARE_CACHES, &step);
	if (server < 0)
		stop(step);
	close(share);
	*port = vsock_connect(FO_VSOCK_PORT);
	if (*port < 0 || fcntl(*port, F_SETFL, O_NONBLOCK) < 0)
		stop(FO_CONTROL_PORT);
	return server;
}

int main(int count, char **words)
{
	const struct sched_param none = {.sched_priority = 0};
	int port;
	if (getpid() != 1)
		return count == 4 ? later_load(words[3]) : 1;
	initrd = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	enter_root();
	settle();
	int events = listen_for_devices();
	load_modules(initrd, MODULES);
	pid_t server = vsock_there() ? open_connections(&port) : open_ports(events, &port);
	close(events);
	/* A reader that takes the processor from a writer at each of its lines costs both twice as much. */
	syscall(SYS_sched_setscheduler, 0, SCHED_BATCH, &none);
	agent_run(port, server);
}
