#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "agent.h"

int fail(struct err *err, int number, const char *step, const char *format, ...)
{
	va_list args;
	err->number = number > 0 ? number : EIO;
	snprintf(err->step, sizeof err->step, "%s", step);
	va_start(args, format);
	vsnprintf(err->message, sizeof err->message, format, args);
	va_end(args);
	err->field[0] = 0;
	return -1;
}

int fail_errno(struct err *err, const char *step)
{
	int number = errno;
	return fail(err, number, step, "%s", strerror(number));
}

int fail_field(struct err *err, const char *field)
{
	snprintf(err->field, sizeof err->field, "%s", field);
	return -1;
}
