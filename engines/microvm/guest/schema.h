/* Made from engines/microvm/wire/messages.py; a test compares. */
#pragma once
#include "fields.h"

static const struct rule group_hello_rules[] = {
	{T_VERSION, AS_NUMBER, NEEDED, UINT64_C(0), UINT64_C(18446744073709551615), "version", NULL},
};
static const struct group group_hello = {"hello", group_hello_rules, 1};

static const struct rule group_route_rules[] = {
	{T_DESTINATION, AS_TEXT, NEEDED, UINT64_C(1), UINT64_C(128), "destination", NULL},
	{T_GATEWAY, AS_TEXT, 0, UINT64_C(1), UINT64_C(128), "gateway", NULL},
	{T_SCOPE, AS_NUMBER, 0, UINT64_C(0), UINT64_C(255), "scope", NULL},
	{T_SOURCE, AS_TEXT, 0, UINT64_C(1), UINT64_C(128), "source", NULL},
	{T_PRIORITY, AS_NUMBER, 0, UINT64_C(0), UINT64_C(4294967295), "priority", NULL},
};
static const struct group group_route = {"route", group_route_rules, 5};

static const struct rule group_neighbour_rules[] = {
	{T_ADDRESS, AS_TEXT, NEEDED, UINT64_C(1), UINT64_C(128), "address", NULL},
	{T_MAC, AS_BYTES, NEEDED, UINT64_C(6), UINT64_C(6), "mac", NULL},
};
static const struct group group_neighbour = {"neighbour", group_neighbour_rules, 2};

static const struct rule group_interface_rules[] = {
	{T_NAME, AS_TEXT, NEEDED, UINT64_C(1), UINT64_C(15), "name", NULL},
	{T_MAC, AS_BYTES, NEEDED, UINT64_C(6), UINT64_C(6), "mac", NULL},
	{T_MTU, AS_NUMBER, NEEDED, UINT64_C(68), UINT64_C(65535), "mtu", NULL},
	{T_ADDRESS, AS_TEXT, MANY, UINT64_C(1), UINT64_C(128), "addresses", NULL},
	{T_ROUTE, AS_GROUP, MANY, UINT64_C(0), UINT64_C(1048576), "routes", &group_route},
	{T_NEIGHBOUR, AS_GROUP, MANY, UINT64_C(0), UINT64_C(1048576), "neighbours", &group_neighbour},
};
static const struct group group_interface = {"interface", group_interface_rules, 6};

static const struct rule group_setting_rules[] = {
	{T_NAME, AS_TEXT, NEEDED, UINT64_C(1), UINT64_C(4095), "name", NULL},
	{T_VALUE, AS_TEXT, NEEDED, UINT64_C(0), UINT64_C(4095), "value", NULL},
};
static const struct group group_setting = {"setting", group_setting_rules, 2};

static const struct rule group_setup_rules[] = {
	{T_TIME, AS_NUMBER, NEEDED, UINT64_C(1), UINT64_C(9223372036854775807), "time", NULL},
	{T_ENTROPY, AS_BYTES, NEEDED, UINT64_C(32), UINT64_C(4096), "entropy", NULL},
	{T_HOSTNAME, AS_TEXT, NEEDED, UINT64_C(1), UINT64_C(64), "hostname", NULL},
	{T_MACHINE_ID, AS_TEXT, NEEDED, UINT64_C(32), UINT64_C(32), "machine_id", NULL},
	{T_INTERFACE, AS_GROUP, MANY, UINT64_C(0), UINT64_C(1048576), "interfaces", &group_interface},
	{T_SYSCTL, AS_GROUP, MANY, UINT64_C(0), UINT64_C(1048576), "sysctls", &group_setting},
	{T_SHM_SIZE, AS_NUMBER, 0, UINT64_C(4096), UINT64_C(281474976710656), "shm_size", NULL},
	{T_SHARED_PID, AS_NUMBER, 0, UINT64_C(0), UINT64_C(1), "shared_pid", NULL},
};
static const struct group group_setup = {"setup", group_setup_rules, 8};

static const struct rule group_rootfs_rules[] = {
	{T_LUN, AS_NUMBER, NEEDED, UINT64_C(0), UINT64_C(255), "lun", NULL},
	{T_FSTYPE, AS_TEXT, NEEDED, UINT64_C(1), UINT64_C(16), "fstype", NULL},
	{T_READONLY, AS_NUMBER, 0, UINT64_C(0), UINT64_C(1), "readonly", NULL},
	{T_UPPER_SIZE, AS_NUMBER, 0, UINT64_C(4096), UINT64_C(281474976710656), "upper_size", NULL},
	{T_UPPER_LUN, AS_NUMBER, 0, UINT64_C(0), UINT64_C(255), "upper_lun", NULL},
};
static const struct group group_rootfs = {"rootfs", group_rootfs_rules, 5};

static const struct rule group_caps_rules[] = {
	{T_BOUNDING, AS_NUMBER, NEEDED, UINT64_C(0), UINT64_C(18446744073709551615), "bounding", NULL},
	{T_EFFECTIVE, AS_NUMBER, NEEDED, UINT64_C(0), UINT64_C(18446744073709551615), "effective", NULL},
	{T_PERMITTED, AS_NUMBER, NEEDED, UINT64_C(0), UINT64_C(18446744073709551615), "permitted", NULL},
	{T_INHERITABLE, AS_NUMBER, NEEDED, UINT64_C(0), UINT64_C(18446744073709551615), "inheritable", NULL},
	{T_AMBIENT, AS_NUMBER, NEEDED, UINT64_C(0), UINT64_C(18446744073709551615), "ambient", NULL},
};
static const struct group group_caps = {"caps", group_caps_rules, 5};

static const struct rule group_rlimit_rules[] = {
	{T_RESOURCE, AS_NUMBER, NEEDED, UINT64_C(0), UINT64_C(15), "resource", NULL},
	{T_SOFT, AS_NUMBER, NEEDED, UINT64_C(0), UINT64_C(18446744073709551615), "soft", NULL},
	{T_HARD, AS_NUMBER, NEEDED, UINT64_C(0), UINT64_C(18446744073709551615), "hard", NULL},
};
static const struct group group_rlimit = {"rlimit", group_rlimit_rules, 3};

static const struct rule group_program_rules[] = {
	{T_ARG, AS_TEXT, MANY | NEEDED, UINT64_C(0), UINT64_C(131072), "args", NULL},
	{T_ENV, AS_TEXT, MANY, UINT64_C(0), UINT64_C(131072), "env", NULL},
	{T_CWD, AS_TEXT, NEEDED, UINT64_C(1), UINT64_C(4095), "cwd", NULL},
	{T_UID, AS_NUMBER, NEEDED, UINT64_C(0), UINT64_C(4294967294), "uid", NULL},
	{T_GID, AS_NUMBER, NEEDED, UINT64_C(0), UINT64_C(4294967294), "gid", NULL},
	{T_GROUP, AS_NUMBER, MANY, UINT64_C(0), UINT64_C(4294967294), "groups", NULL},
	{T_UMASK, AS_NUMBER, 0, UINT64_C(0), UINT64_C(511), "umask", NULL},
	{T_TTY, AS_NUMBER, 0, UINT64_C(0), UINT64_C(1), "tty", NULL},
	{T_STDIN, AS_NUMBER, 0, UINT64_C(0), UINT64_C(1), "stdin", NULL},
	{T_CAPS, AS_GROUP, NEEDED, UINT64_C(0), UINT64_C(1048576), "caps", &group_caps},
	{T_NO_NEW_PRIVS, AS_NUMBER, 0, UINT64_C(0), UINT64_C(1), "no_new_privs", NULL},
	{T_SECCOMP, AS_BYTES, 0, UINT64_C(8), UINT64_C(32768), "seccomp", NULL},
	{T_SECCOMP_FLAGS, AS_NUMBER, 0, UINT64_C(0), UINT64_C(4294967295), "seccomp_flags", NULL},
	{T_RLIMIT, AS_GROUP, MANY, UINT64_C(0), UINT64_C(1048576), "rlimits", &group_rlimit},
	{T_OOM_SCORE_ADJ, AS_NUMBER, 0, UINT64_C(0), UINT64_C(2000), "oom_score_adj", NULL},
};
static const struct group group_program = {"program", group_program_rules, 15};

static const struct rule group_mount_rules[] = {
	{T_MOUNT_KIND, AS_NUMBER, NEEDED, UINT64_C(0), UINT64_C(5), "kind", NULL},
	{T_DESTINATION, AS_TEXT, NEEDED, UINT64_C(1), UINT64_C(4095), "destination", NULL},
	{T_SOURCE, AS_TEXT, 0, UINT64_C(1), UINT64_C(4095), "source", NULL},
	{T_FLAGS, AS_NUMBER, 0, UINT64_C(0), UINT64_C(4294967295), "flags", NULL},
	{T_OPTIONS, AS_TEXT, 0, UINT64_C(1), UINT64_C(4095), "options", NULL},
	{T_CONTENT, AS_BYTES, 0, UINT64_C(1), UINT64_C(524288), "content", NULL},
	{T_MODE, AS_NUMBER, 0, UINT64_C(0), UINT64_C(4095), "mode", NULL},
	{T_LUN, AS_NUMBER, 0, UINT64_C(0), UINT64_C(255), "lun", NULL},
	{T_PROPAGATION, AS_NUMBER, 0, UINT64_C(0), UINT64_C(4294967295), "propagation", NULL},
};
static const struct group group_mount = {"mount", group_mount_rules, 9};

static const struct rule group_device_rules[] = {
	{T_NAME, AS_TEXT, NEEDED, UINT64_C(1), UINT64_C(4095), "name", NULL},
	{T_MODE, AS_NUMBER, NEEDED, UINT64_C(0), UINT64_C(4095), "mode", NULL},
	{T_UID, AS_NUMBER, NEEDED, UINT64_C(0), UINT64_C(4294967294), "uid", NULL},
	{T_GID, AS_NUMBER, NEEDED, UINT64_C(0), UINT64_C(4294967294), "gid", NULL},
	{T_DEVICE_KIND, AS_NUMBER, NEEDED, UINT64_C(98), UINT64_C(112), "kind", NULL},
	{T_MAJOR, AS_NUMBER, NEEDED, UINT64_C(0), UINT64_C(4294967295), "major", NULL},
	{T_MINOR, AS_NUMBER, NEEDED, UINT64_C(0), UINT64_C(4294967295), "minor", NULL},
};
static const struct group group_device = {"device", group_device_rules, 7};

static const struct rule group_create_rules[] = {
	{T_CONTAINER, AS_TEXT, NEEDED, UINT64_C(1), UINT64_C(128), "container", NULL},
	{T_ROOTFS, AS_GROUP, NEEDED, UINT64_C(0), UINT64_C(1048576), "rootfs", &group_rootfs},
	{T_PROGRAM, AS_GROUP, NEEDED, UINT64_C(0), UINT64_C(1048576), "program", &group_program},
	{T_PID_MODE, AS_NUMBER, 0, UINT64_C(0), UINT64_C(2), "pid_mode", NULL},
	{T_TARGET, AS_TEXT, 0, UINT64_C(1), UINT64_C(128), "target", NULL},
	{T_IPC_OWN, AS_NUMBER, 0, UINT64_C(0), UINT64_C(1), "ipc_own", NULL},
	{T_MOUNT, AS_GROUP, MANY, UINT64_C(0), UINT64_C(1048576), "mounts", &group_mount},
	{T_MASKED, AS_TEXT, MANY, UINT64_C(1), UINT64_C(4095), "masked", NULL},
	{T_READONLY_PATH, AS_TEXT, MANY, UINT64_C(1), UINT64_C(4095), "readonly_paths", NULL},
	{T_DEVICE, AS_GROUP, MANY, UINT64_C(0), UINT64_C(1048576), "devices", &group_device},
	{T_CGROUP, AS_GROUP, MANY, UINT64_C(0), UINT64_C(1048576), "cgroup", &group_setting},
	{T_PROCESS, AS_NUMBER, 0, UINT64_C(0), UINT64_C(268435455), "process", NULL},
};
static const struct group group_create = {"create", group_create_rules, 12};

static const struct rule group_start_rules[] = {
	{T_CONTAINER, AS_TEXT, NEEDED, UINT64_C(1), UINT64_C(128), "container", NULL},
};
static const struct group group_start = {"start", group_start_rules, 1};

static const struct rule group_exec_rules[] = {
	{T_CONTAINER, AS_TEXT, NEEDED, UINT64_C(1), UINT64_C(128), "container", NULL},
	{T_PROGRAM, AS_GROUP, NEEDED, UINT64_C(0), UINT64_C(1048576), "program", &group_program},
	{T_PROCESS, AS_NUMBER, 0, UINT64_C(0), UINT64_C(268435455), "process", NULL},
};
static const struct group group_exec = {"exec", group_exec_rules, 3};

static const struct rule group_signal_rules[] = {
	{T_CONTAINER, AS_TEXT, 0, UINT64_C(1), UINT64_C(128), "container", NULL},
	{T_PROCESS, AS_NUMBER, 0, UINT64_C(0), UINT64_C(268435455), "process", NULL},
	{T_SIGNO, AS_NUMBER, NEEDED, UINT64_C(1), UINT64_C(64), "signo", NULL},
	{T_ALL, AS_NUMBER, 0, UINT64_C(0), UINT64_C(1), "all", NULL},
};
static const struct group group_signal = {"signal", group_signal_rules, 4};

static const struct rule group_update_rules[] = {
	{T_CONTAINER, AS_TEXT, NEEDED, UINT64_C(1), UINT64_C(128), "container", NULL},
	{T_CGROUP, AS_GROUP, MANY, UINT64_C(0), UINT64_C(1048576), "cgroup", &group_setting},
};
static const struct group group_update = {"update", group_update_rules, 2};

static const struct rule group_freeze_rules[] = {
	{T_CONTAINER, AS_TEXT, NEEDED, UINT64_C(1), UINT64_C(128), "container", NULL},
	{T_ON, AS_NUMBER, NEEDED, UINT64_C(0), UINT64_C(1), "on", NULL},
};
static const struct group group_freeze = {"freeze", group_freeze_rules, 2};

static const struct rule group_stats_request_rules[] = {
	{T_CONTAINER, AS_TEXT, MANY, UINT64_C(1), UINT64_C(128), "containers", NULL},
};
static const struct group group_stats_request = {"statsrequest", group_stats_request_rules, 1};

static const struct rule group_delete_rules[] = {
	{T_CONTAINER, AS_TEXT, NEEDED, UINT64_C(1), UINT64_C(128), "container", NULL},
};
static const struct group group_delete = {"delete", group_delete_rules, 1};

static const struct rule group_dial_rules[] = {
	{T_PROCESS, AS_NUMBER, NEEDED, UINT64_C(0), UINT64_C(268435455), "process", NULL},
	{T_PORT, AS_NUMBER, NEEDED, UINT64_C(1), UINT64_C(65535), "port", NULL},
};
static const struct group group_dial = {"dial", group_dial_rules, 2};

static const struct group group_done = {"done", NULL, 0};

static const struct rule group_clock_rules[] = {
	{T_TIME, AS_NUMBER, NEEDED, UINT64_C(1), UINT64_C(9223372036854775807), "time", NULL},
	{T_ENTROPY, AS_BYTES, 0, UINT64_C(32), UINT64_C(4096), "entropy", NULL},
};
static const struct group group_clock = {"clock", group_clock_rules, 2};

static const struct rule group_resize_rules[] = {
	{T_WIDTH, AS_NUMBER, NEEDED, UINT64_C(0), UINT64_C(65535), "width", NULL},
	{T_HEIGHT, AS_NUMBER, NEEDED, UINT64_C(0), UINT64_C(65535), "height", NULL},
};
static const struct group group_resize = {"resize", group_resize_rules, 2};

static const struct group *const told[] = {
	[K_HELLO] = &group_hello,
	[K_SETUP] = &group_setup,
	[K_CREATE] = &group_create,
	[K_START] = &group_start,
	[K_EXEC] = &group_exec,
	[K_SIGNAL] = &group_signal,
	[K_UPDATE] = &group_update,
	[K_FREEZE] = &group_freeze,
	[K_STATS] = &group_stats_request,
	[K_DELETE] = &group_delete,
	[K_DIAL] = &group_dial,
	[K_QUIESCE] = &group_done,
	[K_POWEROFF] = &group_done,
	[K_CLOCK] = &group_clock,
	[K_RESIZE] = &group_resize,
};
