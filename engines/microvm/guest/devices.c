#include "devices.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "calls.h"
#include "mounts.h"
#include "paths.h"
#include "setup.h"

#define FIELD "devices"
#define PTS_OPTIONS "newinstance,ptmxmode=0666,mode=0620,gid=5"
#define SAFE (MS_NOSUID | MS_NODEV | MS_NOEXEC)

struct node {
	const char *name;
	unsigned major, minor;
};

static const struct node NODES[] = {
	{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0},
};

static const char *const LINKS[][2] = {
	{"fd", "/proc/self/fd"},	   {"stdin", "/proc/self/fd/0"}, {"stdout", "/proc/self/fd/1"},
	{"stderr", "/proc/self/fd/2"}, {"core", "/proc/kcore"},	     {"ptmx", "pts/ptmx"},
};

/* ---- /dev ------------------------------------------------------------------------------------------------------ */

static int populate(int dev, struct err *err)
{
	for (size_t index = 0; index < sizeof NODES / sizeof *NODES; index++) {
		const struct node *node = &NODES[index];
		if (mknodat(dev, node->name, S_IFCHR | 0666, makedev(node->major, node->minor)) < 0)
			return fail(err, errno, "mknod", "/dev/%s: %s", node->name, strerror(errno));
	}
	for (size_t index = 0; index < sizeof LINKS / sizeof *LINKS; index++)
		if (symlinkat(LINKS[index][1], dev, LINKS[index][0]) < 0)
			return fail(err, errno, "symlink", "/dev/%s: %s", LINKS[index][0], strerror(errno));
	return 0;
}

static int mount_one(int tree, int root, const char *destination, struct err *err)
{
	return tree < 0 ? -1 : fs_attach(tree, root, destination, true, err);
}

int devices_mount(const struct fields *request, int root, struct err *err)
{
	if (mounts_have(request, "/dev"))
		return 0;
	int tree = fs_new("tmpfs", "tmpfs", "mode=755,size=65536k", MS_NOSUID | MS_STRICTATIME, err);
	if (tree < 0)
		return -1;
	/* In no tree yet: nothing else can be there. */
	if (populate(tree, err) < 0) {
		close(tree);
		return -1;
	}
	if (mount_one(tree, root, "/dev", err) < 0)
		return -1;
	if (!mounts_have(request, "/dev/pts") &&
	    mount_one(fs_new("devpts", "devpts", PTS_OPTIONS, MS_NOSUID | MS_NOEXEC, err), root, "/dev/pts", err) < 0)
		return -1;
	if (!mounts_have(request, "/dev/mqueue") &&
	    mount_one(fs_new("mqueue", "mqueue", NULL, SAFE, err), root, "/dev/mqueue", err) < 0)
		return -1;
	if (!mounts_have(request, "/dev/shm") && mount_one(fs_clone(AT_FDCWD, POD_SHM, err), root, "/dev/shm", err) < 0)
		return -1;
	return 0;
}

/* The directory that the last part of `path` is in, made if it is missing. */
static int parent_of(int root, const char *path, const char **name)
{
	char parent[4096];
	const char *slash = strrchr(path, '/');
	*name = slash ? slash + 1 : path;
	if (!**name || strcmp(*name, ".") == 0 || strcmp(*name, "..") == 0 || strlen(path) >= sizeof parent) {
		errno = EINVAL;
		return -1;
	}
	snprintf(parent, sizeof parent, "%.*s", (int)(*name - path), path);
	return path_open(root, parent, PATH_DIRECTORY);
}

/* A device that is there already will do if it is the same one. */
static bool is_node(int parent, const char *name, mode_t type, dev_t device)
{
	struct stat found;
	return fstatat(parent, name, &found, AT_SYMLINK_NOFOLLOW) == 0 && (found.st_mode & S_IFMT) == type &&
	       (type == S_IFIFO || found.st_rdev == device);
}

static int make_node(const struct fields *device, int root, struct err *err)
{
	const char *name, *path = fields_text(device, T_NAME, "");
	uint64_t kind = fields_u64(device, T_DEVICE_KIND, 0);
	mode_t type = kind == 'c' ? S_IFCHR : kind == 'b' ? S_IFBLK : S_IFIFO;
	dev_t number = makedev((unsigned)fields_u64(device, T_MAJOR, 0), (unsigned)fields_u64(device, T_MINOR, 0));
	if (kind != 'c' && kind != 'b' && kind != 'p')
		return fail(err, EINVAL, "mknod", "%s: its kind is none", path);
	int parent = parent_of(root, path, &name), result = -1;
	if (parent < 0)
		return fail(err, errno, "mknod", "%s: %s", path, strerror(errno));
	if (mknodat(parent, name, type | (mode_t)fields_u64(device, T_MODE, 0666), number) == 0)
		result = fchownat(parent, name, (uid_t)fields_u64(device, T_UID, 0),
				  (gid_t)fields_u64(device, T_GID, 0), AT_SYMLINK_NOFOLLOW);
	else if (errno == EEXIST && is_node(parent, name, type, number))
		result = 0;
	if (result < 0)
		fail(err, errno, "mknod", "%s: %s", path, strerror(errno));
	close(parent);
	return result;
}

int devices_make(const struct fields *request, int root, struct err *err)
{
	struct fields it = *request;
	struct field each;
	while (fields_each(&it, T_DEVICE, &each)) {
		struct fields device = field_group(&each);
		if (make_node(&device, root, err) < 0)
			return fail_field(err, FIELD);
	}
	return 0;
}

/* ---- terminals ------------------------------------------------------------------------------------------------- */

int terminal_open(const struct program *program, int root, struct stdio *stdio, struct err *err)
{
	struct statfs found;
	int unlocked = 0, slave = -1;
	/* Whatever a container has put there instead of its devpts is not waited for, and not used. */
	int master = path_open_plain(root, "dev/pts/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK);
	if (master < 0)
		return fail_errno(err, "open a terminal");
	if (fstatfs(master, &found) < 0 || found.f_type != K_DEVPTS_MAGIC)
		fail(err, ENOTTY, "open a terminal", "/dev/pts of the container is no devpts");
	else if (ioctl(master, TIOCSPTLCK, &unlocked) < 0 ||
		 (slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC)) < 0 ||
		 fchown(slave, program->uid, (gid_t)-1) < 0)
		fail_errno(err, "open a terminal");
	else {
		*stdio = (struct stdio){.in = slave, .out = slave, .err = slave, .terminal = master};
		return 0;
	}
	if (slave >= 0)
		close(slave);
	close(master);
	return -1;
}

int terminal_console(int root, const struct stdio *stdio, struct err *err)
{
	int tree = fs_clone(stdio->in, "", err);
	return tree < 0 ? -1 : fs_attach(tree, root, "/dev/console", false, err);
}

/* ---- rules ----------------------------------------------------------------------------------------------------- */

#define ANY UINT32_MAX
#define RULES_MAX 128
/* Of one rule at most, and of what is around them. */
#define RULE_SIZE 5
#define FRAME_SIZE 12

/* linux/bpf.h: what a program is asked about. */
enum { TYPE_BLOCK = 1, TYPE_CHARACTER = 2, ACCESS_MKNOD = 1 };
enum { CONTEXT = 1, TYPE = 2, ACCESS = 3, MAJOR = 4, MINOR = 5 };
enum { LOAD_U32 = 0x61, COPY = 0xbf, AND = 0x54, SHIFT_RIGHT = 0x74, JUMP_UNLESS = 0x55, SET = 0xb7, EXIT = 0x95 };

struct rules {
	struct k_bpf_insn code[RULES_MAX * RULE_SIZE + FRAME_SIZE];
	unsigned size;
};

static void add(struct rules *rules, uint8_t code, unsigned to, unsigned from, int offset, uint32_t value)
{
	rules->code[rules->size++] = (struct k_bpf_insn){.code = code,
							 .registers = (uint8_t)(to | from << 4),
							 .offset = (int16_t)offset,
							 .immediate = (int32_t)value};
}

static void answer(struct rules *rules, uint32_t value)
{
	add(rules, SET, 0, 0, 0, value);
	add(rules, EXIT, 0, 0, 0, 0);
}

static void allow(struct rules *rules, unsigned type, uint32_t major, uint32_t minor)
{
	bool any = minor == ANY;
	add(rules, JUMP_UNLESS, TYPE, 0, any ? 3 : 4, type);
	add(rules, JUMP_UNLESS, MAJOR, 0, any ? 2 : 3, major);
	if (!any)
		add(rules, JUMP_UNLESS, MINOR, 0, 2, minor);
	answer(rules, 1);
}

static void begin(struct rules *rules)
{
	rules->size = 0;
	add(rules, LOAD_U32, TYPE, CONTEXT, 0, 0);
	add(rules, COPY, ACCESS, TYPE, 0, 0);
	add(rules, AND, TYPE, 0, 0, 0xffff);
	add(rules, SHIFT_RIGHT, ACCESS, 0, 0, 16);
	add(rules, LOAD_U32, MAJOR, CONTEXT, 4, 0);
	add(rules, LOAD_U32, MINOR, CONTEXT, 8, 0);
	add(rules, JUMP_UNLESS, ACCESS, 0, 2, ACCESS_MKNOD);
	answer(rules, 1);
	for (size_t index = 0; index < sizeof NODES / sizeof *NODES; index++)
		allow(rules, TYPE_CHARACTER, NODES[index].major, NODES[index].minor);
	/* /dev/console, /dev/ptmx, and terminals of devpts. */
	allow(rules, TYPE_CHARACTER, 5, 1);
	allow(rules, TYPE_CHARACTER, 5, 2);
	allow(rules, TYPE_CHARACTER, 136, ANY);
}

static int call(int command, const union k_bpf_attr *attr)
{
	return (int)syscall(SYS_bpf, command, attr, sizeof *attr);
}

static int load(struct rules *rules)
{
	union k_bpf_attr attr;
	memset(&attr, 0, sizeof attr);
	attr.load.type = K_BPF_PROG_TYPE_CGROUP_DEVICE;
	attr.load.count = rules->size;
	attr.load.instructions = (uintptr_t)rules->code;
	attr.load.license = (uintptr_t) "";
	return call(K_BPF_PROG_LOAD, &attr);
}

static int attach(int program, int cgroup)
{
	union k_bpf_attr attr;
	memset(&attr, 0, sizeof attr);
	attr.attach.target = (uint32_t)cgroup;
	attr.attach.program = (uint32_t)program;
	attr.attach.type = K_BPF_CGROUP_DEVICE;
	return call(K_BPF_PROG_ATTACH, &attr);
}

/* For containers without devices of their own: to check a program takes the kernel longer than all else of a cgroup. */
static int common = -1;

int devices_prepare(int cgroup, struct err *err)
{
	struct rules rules;
	begin(&rules);
	answer(&rules, 0);
	common = load(&rules);
	return common < 0 || attach(common, cgroup) < 0 ? fail_errno(err, "restrict devices") : 0;
}

int devices_restrict(int cgroup, const struct fields *request, struct err *err)
{
	struct rules rules;
	struct field any;
	if (common >= 0 && !fields_find(request, T_DEVICE, &any))
		return attach(common, cgroup) < 0 ? fail_errno(err, "restrict devices") : 0;
	struct fields it = *request;
	struct field each;
	unsigned count = 16; /* more than begin() has */
	begin(&rules);
	while (fields_each(&it, T_DEVICE, &each)) {
		struct fields device = field_group(&each);
		uint64_t kind = fields_u64(&device, T_DEVICE_KIND, 0);
		if (kind == 'p')
			continue;
		if (++count > RULES_MAX) {
			fail(err, E2BIG, "restrict devices", "there are more than %d", RULES_MAX - 16);
			return fail_field(err, FIELD);
		}
		allow(&rules, kind == 'b' ? TYPE_BLOCK : TYPE_CHARACTER, (uint32_t)fields_u64(&device, T_MAJOR, 0),
		      (uint32_t)fields_u64(&device, T_MINOR, 0));
	}
	answer(&rules, 0);
	int program = load(&rules);
	if (program < 0)
		return fail_errno(err, "restrict devices");
	int result = attach(program, cgroup);
	if (result < 0)
		fail_errno(err, "restrict devices");
	close(program);
	return result;
}
