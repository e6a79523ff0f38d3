/* The machine's network interfaces, by rtnetlink(7). */
#pragma once

#include "agent.h"

/* The loopback is up, and the machine's interfaces are known. */
int net_prepare(struct err *err);
/* The machine's `index`-th interface is as the INTERFACE group says. */
int net_interface(const struct fields *group, unsigned index, struct err *err);
