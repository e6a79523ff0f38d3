/* Modules that the kernel asks for once somebody needs them (kernel.modprobe): "/initrd/init -q -- NAME". */
#pragma once

#include <stdbool.h>

/* Where the initrd is then. */
#define INITRD "/initrd"

/* The exit status: 0 if the module, or one that goes by that name, is loaded. */
int later_load(const char *name);
