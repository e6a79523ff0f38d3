/* The machine's network interfaces, by rtnetlink(7). */
#pragma once

#include "agent.h"

/* The loopback is up. */
int net_loopback(struct err *err);
/* The machine's `index`-th interface is as the INTERFACE group says. */
int net_interface(const struct fields *group, unsigned index, struct err *err);
