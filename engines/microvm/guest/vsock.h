/* The machine's ports where they are connections to its host (vsock(7)), as with Firecracker and Cloud Hypervisor. */
#pragma once

#include <stdbool.h>

/* Whether the machine has a number by which its host knows it. */
bool vsock_there(void);

/* A connection to that port of the host, blocking; -1 with errno. */
int vsock_connect(unsigned port);
