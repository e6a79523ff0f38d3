#include "net.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "kernel.h"

#define FIELD "interfaces"
#define WAIT_S 5

/* An address or a network, in the bytes of the wire. */
struct address {
	unsigned char bytes[16];
	uint8_t family, size, prefix;
};

struct message {
	struct k_nlmsghdr header;
	unsigned char body[512];
};

/* ---- messages ------------------------------------------------------------------------------------------------ */

static void *begin(struct message *message, uint16_t type, uint16_t flags, size_t size)
{
	memset(message, 0, sizeof *message);
	message->header.type = type;
	message->header.flags = (uint16_t)(K_NLM_F_REQUEST | K_NLM_F_ACK | flags);
	message->header.len = (uint32_t)(sizeof message->header + size);
	return message->body;
}

/* What is put into one message is bounded by its few kinds of attributes, far below the room there is. */
static void put(struct message *message, uint16_t type, const void *data, size_t size)
{
	struct k_rtattr attribute = {.len = (uint16_t)(sizeof attribute + size), .type = type};
	size_t used = (message->header.len + 3u) & ~3u;
	unsigned char *at = (unsigned char *)message + used;
	memcpy(at, &attribute, sizeof attribute);
	memcpy(at + sizeof attribute, data, size);
	message->header.len = (uint32_t)(used + sizeof attribute + size);
}

static void put_u32(struct message *message, uint16_t type, uint32_t value)
{
	put(message, type, &value, sizeof value);
}

/* Kept: what an emulated machine does for the first time costs it the most. */
static int route = -1;

static int connect_route(void)
{
	struct timeval bound = {.tv_sec = WAIT_S};
	if (route >= 0)
		return 0;
	route = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, K_NETLINK_ROUTE);
	return route < 0 ? -1 : setsockopt(route, SOL_SOCKET, SO_RCVTIMEO, &bound, sizeof bound);
}

/* Sends it, and reads the kernel's word on it: 0, or -1 and errno. */
static int ask(const struct message *message)
{
	struct {
		struct k_nlmsghdr header;
		int32_t error;
		unsigned char rest[1024];
	} answer;
	if (connect_route() < 0)
		return -1;
	int error = EPROTO;
	ssize_t got;
	if (send(route, message, message->header.len, 0) < 0 || (got = recv(route, &answer, sizeof answer, 0)) < 0) {
		error = errno;
		/* An answer that is late is not the next one's. */
		close(route);
		route = -1;
	} else if ((size_t)got >= sizeof answer.header + sizeof answer.error && answer.header.type == K_NLMSG_ERROR) {
		error = -answer.error;
	}
	errno = error;
	return error ? -1 : 0;
}

/* ---- texts --------------------------------------------------------------------------------------------------- */

static bool parse_address(const char *text, struct address *out)
{
	out->family = strchr(text, ':') ? AF_INET6 : AF_INET;
	out->size = out->family == AF_INET6 ? 16 : 4;
	out->prefix = (uint8_t)(out->size * 8);
	return inet_pton(out->family, text, out->bytes) == 1;
}

/* ADDRESS/PREFIX */
static bool parse_network(const char *text, struct address *out)
{
	char address[INET6_ADDRSTRLEN], *end;
	const char *slash = strchr(text, '/');
	if (!slash || (size_t)(slash - text) >= sizeof address || slash[1] < '0' || slash[1] > '9')
		return false;
	memcpy(address, text, (size_t)(slash - text));
	address[slash - text] = 0;
	unsigned long prefix = strtoul(slash + 1, &end, 10);
	if (*end || !parse_address(address, out) || prefix > out->prefix)
		return false;
	out->prefix = (uint8_t)prefix;
	return true;
}

static int unreadable(struct err *err, const char *what, const char *text)
{
	fail(err, EINVAL, "read the network", "%s is no %s", text, what);
	return fail_field(err, FIELD);
}

static int refused(struct err *err, const char *verb, const char *what)
{
	char step[sizeof err->step];
	snprintf(step, sizeof step, "%s %s", verb, what);
	fail_errno(err, step);
	return fail_field(err, FIELD);
}

/* ---- links --------------------------------------------------------------------------------------------------- */

static int compare(const void *left, const void *right)
{
	unsigned one = *(const unsigned *)left, other = *(const unsigned *)right;
	return (one > other) - (one < other);
}

/* The interfaces of devices, in the kernel's order: all of them are there from the beginning. */
static struct {
	unsigned links[64], count;
	/* Of the first. */
	char name[IF_NAMESIZE];
} devices;

static void find_devices(void)
{
	DIR *links = opendir("/sys/class/net");
	struct dirent *entry;
	if (!links)
		return;
	while ((entry = readdir(links)) && devices.count < sizeof devices.links / sizeof *devices.links) {
		char path[NAME_MAX + 16];
		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof path, "%s/device", entry->d_name);
		if (faccessat(dirfd(links), path, F_OK, 0) == 0 && (devices.links[devices.count] = if_nametoindex(entry->d_name)))
			devices.count++;
	}
	closedir(links);
	qsort(devices.links, devices.count, sizeof *devices.links, compare);
	if (devices.count && !if_indextoname(devices.links[0], devices.name))
		devices.name[0] = 0;
}

int net_prepare(struct err *err)
{
	struct message message;
	find_devices();
	struct k_ifinfomsg *link = begin(&message, K_RTM_NEWLINK, 0, sizeof *link);
	link->index = (int)if_nametoindex("lo");
	link->flags = link->change = K_IFF_UP;
	return ask(&message) < 0 ? refused(err, "set up", "lo") : 0;
}

static int set_link(const struct fields *group, unsigned link_index, const char *name, struct err *err)
{
	struct message message;
	struct field mac;
	struct k_ifinfomsg *link = begin(&message, K_RTM_NEWLINK, 0, sizeof *link);
	link->index = (int)link_index;
	/* The kernel changes address, size and name first. */
	link->flags = link->change = K_IFF_UP;
	if (fields_find(group, T_MAC, &mac))
		put(&message, K_IFLA_ADDRESS, mac.data, mac.size);
	if (fields_has(group, T_MTU))
		put_u32(&message, K_IFLA_MTU, (uint32_t)fields_u64(group, T_MTU, 0));
	/* Nearly always there is one, and it is called as the pod's. */
	if (link_index != devices.links[0] || strcmp(devices.name, name) != 0)
		put(&message, K_IFLA_IFNAME, name, strlen(name) + 1);
	return ask(&message) < 0 ? refused(err, "set up", name) : 0;
}

/* ---- addresses, routes, neighbours ----------------------------------------------------------------------------- */

static int add_address(unsigned link, const char *text, struct err *err)
{
	struct message message;
	struct address address;
	if (!parse_network(text, &address))
		return unreadable(err, "address with a prefix", text);
	struct k_ifaddrmsg *body = begin(&message, K_RTM_NEWADDR, K_NLM_F_CREATE | K_NLM_F_REPLACE, sizeof *body);
	body->family = address.family;
	body->prefixlen = address.prefix;
	body->index = link;
	put(&message, K_IFA_LOCAL, address.bytes, address.size);
	put(&message, K_IFA_ADDRESS, address.bytes, address.size);
	/* That it is the pod's alone was seen to by who gave it to the pod. */
	if (address.family == AF_INET6)
		put_u32(&message, K_IFA_FLAGS, K_IFA_F_NODAD);
	return ask(&message) < 0 ? refused(err, "add address", text) : 0;
}

static int add_route(unsigned link, const struct fields *group, struct err *err)
{
	struct message message;
	struct address to, gateway, source;
	const char *text = fields_text(group, T_DESTINATION, "");
	const char *by = fields_text(group, T_GATEWAY, NULL), *from = fields_text(group, T_SOURCE, NULL);
	if (!parse_network(text, &to))
		return unreadable(err, "network", text);
	if (by && (!parse_address(by, &gateway) || gateway.family != to.family))
		return unreadable(err, "gateway of its family", by);
	if (from && (!parse_address(from, &source) || source.family != to.family))
		return unreadable(err, "source of its family", from);
	struct k_rtmsg *body = begin(&message, K_RTM_NEWROUTE, K_NLM_F_CREATE | K_NLM_F_REPLACE, sizeof *body);
	body->family = to.family;
	body->dst_len = to.prefix;
	body->table = K_RT_TABLE_MAIN;
	body->protocol = K_RTPROT_STATIC;
	body->type = K_RTN_UNICAST;
	body->scope = (uint8_t)fields_u64(group, T_SCOPE, 0);
	put(&message, K_RTA_DST, to.bytes, to.size);
	put_u32(&message, K_RTA_OIF, link);
	if (by)
		put(&message, K_RTA_GATEWAY, gateway.bytes, gateway.size);
	if (from)
		put(&message, K_RTA_PREFSRC, source.bytes, source.size);
	if (fields_has(group, T_PRIORITY))
		put_u32(&message, K_RTA_PRIORITY, (uint32_t)fields_u64(group, T_PRIORITY, 0));
	return ask(&message) < 0 ? refused(err, "add route", text) : 0;
}

static int add_neighbour(unsigned link, const struct fields *group, struct err *err)
{
	struct message message;
	struct address address;
	struct field mac;
	const char *text = fields_text(group, T_ADDRESS, "");
	if (!parse_address(text, &address))
		return unreadable(err, "address", text);
	struct k_ndmsg *body = begin(&message, K_RTM_NEWNEIGH, K_NLM_F_CREATE | K_NLM_F_REPLACE, sizeof *body);
	body->family = address.family;
	body->ifindex = (int)link;
	body->state = K_NUD_PERMANENT;
	put(&message, K_NDA_DST, address.bytes, address.size);
	if (fields_find(group, T_MAC, &mac))
		put(&message, K_NDA_LLADDR, mac.data, mac.size);
	return ask(&message) < 0 ? refused(err, "add neighbour", text) : 0;
}

/* Those to what is on the link come first: by them the kernel knows that it reaches the others' gateways. */
static int add_routes(const struct fields *group, unsigned link, bool gateways, struct err *err)
{
	struct fields it = *group;
	struct field each;
	while (fields_each(&it, T_ROUTE, &each)) {
		struct fields route = field_group(&each);
		if (fields_has(&route, T_GATEWAY) == gateways && add_route(link, &route, err) < 0)
			return -1;
	}
	return 0;
}

int net_interface(const struct fields *group, unsigned index, struct err *err)
{
	const char *name = fields_text(group, T_NAME, "");
	unsigned link = index < devices.count ? devices.links[index] : 0;
	struct fields it;
	struct field each;
	if (!link) {
		fail(err, ENODEV, "find the interface", "the machine has none for %s", name);
		return fail_field(err, FIELD);
	}
	if (set_link(group, link, name, err) < 0)
		return -1;
	for (it = *group; fields_each(&it, T_ADDRESS, &each);)
		if (add_address(link, field_text(&each), err) < 0)
			return -1;
	if (add_routes(group, link, false, err) < 0 || add_routes(group, link, true, err) < 0)
		return -1;
	for (it = *group; fields_each(&it, T_NEIGHBOUR, &each);) {
		struct fields neighbour = field_group(&each);
		if (add_neighbour(link, &neighbour, err) < 0)
			return -1;
	}
	return 0;
}
