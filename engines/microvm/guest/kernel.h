/*
 * What the kernel's interface has and a C library's headers may not: the agent is built on hosts with kernel headers of
 * any age. The numbers of these system calls are the same on every architecture.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <sys/types.h>

#define FO_SYS_open_tree 428
#define FO_SYS_move_mount 429
#define FO_SYS_fsopen 430
#define FO_SYS_fsconfig 431
#define FO_SYS_fsmount 432
#define FO_SYS_pidfd_open 434
#define FO_SYS_clone3 435
#define FO_SYS_close_range 436
#define FO_SYS_openat2 437
#define FO_SYS_faccessat2 439
#define FO_SYS_mount_setattr 442

/* openat2(2) */
struct k_open_how {
	uint64_t flags;
	uint64_t mode;
	uint64_t resolve;
};
#define K_RESOLVE_NO_XDEV 0x01
#define K_RESOLVE_NO_SYMLINKS 0x04
#define K_RESOLVE_BENEATH 0x08

/* open_tree(2), move_mount(2), fsmount(2), mount_setattr(2) */
#define K_OPEN_TREE_CLONE 1u
#define K_OPEN_TREE_CLOEXEC 02000000u
#define K_AT_RECURSIVE 0x8000u
#define K_MOVE_MOUNT_F_EMPTY_PATH 0x04u
#define K_MOVE_MOUNT_T_EMPTY_PATH 0x40u
#define K_FSOPEN_CLOEXEC 1u
#define K_FSMOUNT_CLOEXEC 1u
enum { K_FSCONFIG_SET_FLAG = 0, K_FSCONFIG_SET_STRING = 1, K_FSCONFIG_CMD_CREATE = 6 };

#define K_MOUNT_ATTR_RDONLY 0x00000001ull
#define K_MOUNT_ATTR_NOSUID 0x00000002ull
#define K_MOUNT_ATTR_NODEV 0x00000004ull
#define K_MOUNT_ATTR_NOEXEC 0x00000008ull
#define K_MOUNT_ATTR__ATIME 0x00000070ull
#define K_MOUNT_ATTR_NOATIME 0x00000010ull
#define K_MOUNT_ATTR_STRICTATIME 0x00000020ull
#define K_MOUNT_ATTR_NODIRATIME 0x00000080ull
#define K_MOUNT_ATTR_NOSYMFOLLOW 0x00200000ull
#define K_MS_NOSYMFOLLOW 0x100ul

struct k_mount_attr {
	uint64_t attr_set;
	uint64_t attr_clr;
	uint64_t propagation;
	uint64_t userns_fd;
};

/* clone3(2) */
struct k_clone_args {
	uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls;
	uint64_t set_tid, set_tid_size, cgroup;
};
#define K_CLONE_INTO_CGROUP 0x200000000ull
#define K_CLONE_NEWCGROUP 0x02000000ull

/* capget(2) */
#define K_CAPABILITY_VERSION_3 0x20080522u
struct k_cap_header {
	uint32_t version;
	int pid;
};
struct k_cap_data {
	uint32_t effective, permitted, inheritable;
};

/* bpf(2): programs that decide about devices */
enum { K_BPF_PROG_LOAD = 5, K_BPF_PROG_ATTACH = 8, K_BPF_PROG_TYPE_CGROUP_DEVICE = 15, K_BPF_CGROUP_DEVICE = 6 };
struct k_bpf_insn {
	uint8_t code;
	uint8_t registers; /* destination in the lower half, source in the upper */
	int16_t offset;
	int32_t immediate;
};
union k_bpf_attr {
	struct {
		uint32_t type, count;
		uint64_t instructions, license;
		uint32_t log_level, log_size;
		uint64_t log;
		uint32_t kernel_version, flags;
	} load;
	struct {
		uint32_t target, program, type, flags;
	} attach;
	unsigned char whole[128];
};

/* statfs(2) */
#define K_DEVPTS_MAGIC 0x1cd1

/* netlink(7), rtnetlink(7) */
struct k_nlmsghdr {
	uint32_t len;
	uint16_t type, flags;
	uint32_t seq, pid;
};
struct k_ifinfomsg {
	uint8_t family, pad;
	uint16_t type;
	int32_t index;
	uint32_t flags, change;
};
struct k_ifaddrmsg {
	uint8_t family, prefixlen, flags, scope;
	uint32_t index;
};
struct k_rtmsg {
	uint8_t family, dst_len, src_len, tos, table, protocol, scope, type;
	uint32_t flags;
};
struct k_ndmsg {
	uint8_t family, pad1;
	uint16_t pad2;
	int32_t ifindex;
	uint16_t state;
	uint8_t flags, type;
};
struct k_rtattr {
	uint16_t len, type;
};
enum {
	K_NETLINK_ROUTE = 0,
	K_NETLINK_KOBJECT_UEVENT = 15,
	K_NLM_F_REQUEST = 1,
	K_NLM_F_ACK = 4,
	K_NLM_F_REPLACE = 0x100,
	K_NLM_F_CREATE = 0x400,
	K_NLMSG_ERROR = 2,
	K_RTM_NEWLINK = 16,
	K_RTM_NEWADDR = 20,
	K_RTM_NEWROUTE = 24,
	K_RTM_NEWNEIGH = 28,
	K_IFLA_ADDRESS = 1,
	K_IFLA_IFNAME = 3,
	K_IFLA_MTU = 4,
	K_IFA_ADDRESS = 1,
	K_IFA_LOCAL = 2,
	K_IFA_FLAGS = 8,
	K_IFA_F_NODAD = 2,
	K_RTA_DST = 1,
	K_RTA_OIF = 4,
	K_RTA_GATEWAY = 5,
	K_RTA_PRIORITY = 6,
	K_RTA_PREFSRC = 7,
	K_RT_TABLE_MAIN = 254,
	K_RTPROT_STATIC = 4,
	K_RTN_UNICAST = 1,
	K_NDA_DST = 1,
	K_NDA_LLADDR = 2,
	K_NUD_PERMANENT = 0x80,
	K_IFF_UP = 1,
};
