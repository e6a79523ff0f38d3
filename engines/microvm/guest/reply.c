#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "fields.h"

#define HEAD 6u

static void put_u16(unsigned char *at, unsigned value)
{
	at[0] = (unsigned char)value;
	at[1] = (unsigned char)(value >> 8);
}

static void put_u32(unsigned char *at, uint32_t value)
{
	put_u16(at, value & 0xffff);
	put_u16(at + 2, value >> 16);
}

/* Room for a field of that size, with its head; NULL once something did not fit. */
static unsigned char *take(struct reply *reply, unsigned tag, size_t size)
{
	if (reply->over || reply->room - reply->size < HEAD || size > reply->room - reply->size - HEAD) {
		reply->over = true;
		return NULL;
	}
	unsigned char *at = reply->data + reply->size;
	put_u16(at, tag);
	put_u32(at + 2, (uint32_t)size);
	reply->size += HEAD + size;
	return at + HEAD;
}

void reply_u64(struct reply *reply, unsigned tag, uint64_t value)
{
	unsigned char *at = take(reply, tag, 8);
	if (at) {
		put_u32(at, (uint32_t)value);
		put_u32(at + 4, (uint32_t)(value >> 32));
	}
}

void reply_bytes(struct reply *reply, unsigned tag, const void *data, size_t size)
{
	unsigned char *at = take(reply, tag, size);
	if (at && size)
		memcpy(at, data, size);
}

void reply_text(struct reply *reply, unsigned tag, const char *text)
{
	size_t size = strlen(text);
	unsigned char *at = take(reply, tag, size);
	if (!at)
		return;
	memcpy(at, text, size);
	for (size_t good = 0; (good += utf8_prefix(at + good, size - good)) < size;)
		at[good] = '?';
}

size_t reply_open(struct reply *reply, unsigned tag)
{
	size_t opened = reply->size;
	take(reply, tag, 0);
	return opened;
}

void reply_close(struct reply *reply, size_t opened)
{
	if (!reply->over)
		put_u32(reply->data + opened + 2, (uint32_t)(reply->size - opened - HEAD));
}

void reply_file(struct reply *reply, int directory, const char *name)
{
	static char content[FO_DATA_MAX];
	size_t size = 0;
	ssize_t got = -1;
	int fd = openat(directory, name, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	while (size < sizeof content && (got = read(fd, content + size, sizeof content - size)) > 0)
		size += (size_t)got;
	close(fd);
	if (got < 0)
		return;
	size_t opened = reply_open(reply, T_FILE);
	reply_text(reply, T_NAME, name);
	reply_bytes(reply, T_CONTENT, content, size);
	reply_close(reply, opened);
}
