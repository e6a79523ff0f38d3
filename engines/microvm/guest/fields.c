#include <errno.h>
#include <string.h>

#include "schema.h"

/*
 * A field is u16 tag, u32 size, and its bytes. Sizes have 21 bits, so that the last byte of a checked one is free: a
 * text is moved over it, which makes room for a NUL behind the text. The highest bit of the byte before says so.
 */
#define HEAD 6u
#define IS_TEXT 0x80u
_Static_assert(FO_REQUEST_MAX < (1u << 23), "the size of a field leaves a byte and a bit");

static uint32_t u32_at(const unsigned char *at)
{
	return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static uint64_t u64_at(const unsigned char *at)
{
	return u32_at(at) | (uint64_t)u32_at(at + 4) << 32;
}

const struct group *fields_of(unsigned kind)
{
	return kind < sizeof told / sizeof *told ? told[kind] : NULL;
}

size_t utf8_prefix(const unsigned char *data, size_t size)
{
	size_t at = 0;
	while (at < size) {
		unsigned char first = data[at];
		size_t more = first < 0x80 ? 0 : first < 0xc2 ? 4 : first < 0xe0 ? 1 : first < 0xf0 ? 2 : first < 0xf5 ? 3 : 4;
		if (more == 4 || size - at <= more)
			break;
		/* The second byte's range leaves out what is too long, a surrogate or beyond the last character. */
		unsigned char low = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
		unsigned char high = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
		size_t good = 0;
		while (good < more && data[at + 1 + good] >= low && data[at + 1 + good] <= high) {
			low = 0x80;
			high = 0xbf;
			good++;
		}
		if (good < more)
			break;
		at += 1 + more;
	}
	return at;
}

static int bad(struct err *err, const char *field, const char *what)
{
	fail(err, EBADMSG, "read the request", "%s: %s", field, what);
	return fail_field(err, field);
}

static const struct rule *rule_of(const struct group *group, unsigned tag)
{
	for (unsigned i = 0; i < group->count; i++)
		if (group->rules[i].tag == tag)
			return &group->rules[i];
	return NULL;
}

static int check(const struct group *group, unsigned char *at, unsigned char *end, struct err *err);

static int check_one(const struct rule *rule, unsigned char *at, uint32_t size, struct err *err)
{
	unsigned char *data = at + HEAD;
	if (rule->as == AS_NUMBER) {
		if (size != 8)
			return bad(err, rule->name, "a number has 8 bytes");
		uint64_t value = u64_at(data);
		return value >= rule->low && value <= rule->high ? 0 : bad(err, rule->name, "is out of its bounds");
	}
	if (rule->as == AS_GROUP)
		return check(rule->group, data, data + size, err);
	if (size < rule->low || size > rule->high)
		return bad(err, rule->name, "is too long or too short");
	if (rule->as == AS_TEXT) {
		if (memchr(data, 0, size))
			return bad(err, rule->name, "has a NUL");
		if (utf8_prefix(data, size) != size)
			return bad(err, rule->name, "is not UTF-8");
		at[HEAD - 2] |= IS_TEXT;
		memmove(data - 1, data, size);
		*(data + size - 1) = 0;
	}
	return 0;
}

static int check(const struct group *group, unsigned char *at, unsigned char *end, struct err *err)
{
	uint64_t seen = 0;
	while (at < end) {
		if ((size_t)(end - at) < HEAD)
			return bad(err, group->name, "ends in the middle of a field");
		uint32_t size = u32_at(at + 2);
		const struct rule *rule = rule_of(group, (unsigned)(at[0] | at[1] << 8));
		if (!rule)
			return bad(err, group->name, "has a field that is not its own");
		if (size > (size_t)(end - at) - HEAD)
			return bad(err, rule->name, "is longer than what it is in");
		uint64_t bit = UINT64_C(1) << (rule - group->rules);
		if ((seen & bit) && !(rule->flags & MANY))
			return bad(err, rule->name, "is there twice");
		seen |= bit;
		if (check_one(rule, at, size, err) < 0)
			return -1;
		at += HEAD + size;
	}
	for (unsigned i = 0; i < group->count; i++)
		if ((group->rules[i].flags & NEEDED) && !(seen & UINT64_C(1) << i))
			return bad(err, group->rules[i].name, "is missing");
	return 0;
}

int fields_check(const struct group *group, unsigned char *data, size_t size, struct fields *out, struct err *err)
{
	if (!group || size > FO_REQUEST_MAX)
		return fail(err, EBADMSG, "read the request", "no such request");
	*out = (struct fields){data, data + size};
	return check(group, data, data + size, err);
}

bool fields_next(struct fields *it, struct field *out)
{
	if (it->at == it->end)
		return false;
	bool text = it->at[HEAD - 2] & IS_TEXT;
	out->tag = (uint16_t)(it->at[0] | it->at[1] << 8);
	out->size = (uint32_t)it->at[2] | (uint32_t)it->at[3] << 8 | (uint32_t)(it->at[4] & ~IS_TEXT) << 16;
	out->data = it->at + HEAD - text;
	it->at += HEAD + out->size;
	return true;
}

bool fields_each(struct fields *it, unsigned tag, struct field *out)
{
	struct field one;
	while (fields_next(it, &one))
		if (one.tag == tag) {
			*out = one;
			return true;
		}
	return false;
}

bool fields_find(const struct fields *in, unsigned tag, struct field *out)
{
	struct fields it = *in;
	struct field found;
	if (!fields_each(&it, tag, &found))
		return false;
	*out = found;
	return true;
}

bool fields_has(const struct fields *in, unsigned tag)
{
	struct field field;
	return fields_find(in, tag, &field);
}

uint64_t field_u64(const struct field *field)
{
	return u64_at(field->data);
}

const char *field_text(const struct field *field)
{
	return (const char *)field->data;
}

struct fields field_group(const struct field *field)
{
	return (struct fields){field->data, field->data + field->size};
}

uint64_t fields_u64(const struct fields *in, unsigned tag, uint64_t missing)
{
	struct field field;
	return fields_find(in, tag, &field) ? field_u64(&field) : missing;
}

bool fields_bool(const struct fields *in, unsigned tag)
{
	return fields_u64(in, tag, 0) != 0;
}

const char *fields_text(const struct fields *in, unsigned tag, const char *missing)
{
	struct field field;
	return fields_find(in, tag, &field) ? field_text(&field) : missing;
}

struct fields fields_group(const struct fields *in, unsigned tag)
{
	struct field field;
	return fields_find(in, tag, &field) ? field_group(&field) : (struct fields){in->end, in->end};
}
