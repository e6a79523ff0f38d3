/* What a request may have in it: schema.h is tables of these. */
#pragma once

#include "agent.h"

enum { AS_NUMBER, AS_TEXT, AS_BYTES, AS_GROUP };
enum { MANY = 1, NEEDED = 2 };

struct group;

struct rule {
	uint16_t tag;
	uint8_t as, flags;
	/* Of a number; else of its size. */
	uint64_t low, high;
	const char *name;
	const struct group *group;
};

struct group {
	const char *name;
	const struct rule *rules;
	unsigned count;
};

/*
 * Check a payload of at most FO_REQUEST_MAX bytes against what its kind of request may have, once and before anybody
 * reads it. It is changed: see the file. `group` NULL: nothing is known of that kind.
 */
int fields_check(const struct group *group, unsigned char *data, size_t size, struct fields *out, struct err *err);
/* What is told by a kind of frame; NULL: nothing that has fields. */
const struct group *fields_of(unsigned kind);
/* How many of the bytes are UTF-8 from their beginning on. */
size_t utf8_prefix(const unsigned char *data, size_t size);
