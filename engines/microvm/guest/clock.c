#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "core.h"

#define NANOSECONDS 1000000000u
#define ENTROPY_MAX 4096u
/* random(4) */
#define ADD_ENTROPY _IOW('R', 0x03, int[2])
#define RESEED _IO('R', 0x07)

/* Two machines of one template have had the same randomness until here. */
static int stir(const struct field *entropy, struct err *err)
{
	struct {
		int bits, size;
		unsigned char bytes[ENTROPY_MAX];
	} pool = {.bits = (int)entropy->size * 8, .size = (int)entropy->size};
	if (entropy->size > sizeof pool.bytes)
		return fail(err, EMSGSIZE, "add entropy", "%u bytes", entropy->size);
	memcpy(pool.bytes, entropy->data, entropy->size);
	int fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return fail_errno(err, "open /dev/urandom");
	int result = ioctl(fd, ADD_ENTROPY, &pool) < 0 || ioctl(fd, RESEED) < 0 ? fail_errno(err, "add entropy") : 0;
	close(fd);
	explicit_bzero(&pool, sizeof pool);
	return result;
}

int clock_put(uint64_t nanoseconds, const struct field *entropy, struct err *err)
{
	struct timespec now = {.tv_sec = (time_t)(nanoseconds / NANOSECONDS), .tv_nsec = (long)(nanoseconds % NANOSECONDS)};
	if (clock_settime(CLOCK_REALTIME, &now) < 0)
		return fail_errno(err, "set the clock");
	return entropy->size ? stir(entropy, err) : 0;
}
