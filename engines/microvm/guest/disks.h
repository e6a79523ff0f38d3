/* The machine's disks, by the number of their SCSI unit. */
#pragma once

#include "agent.h"

#define LUN_MAX 256u

/* "/dev/" and the disk's name. */
struct disk {
	char path[32];
};

/*
 * Waits until the unit 0:0:`lun` is there and can be read, a few seconds at most: it was plugged in before the request
 * was sent, and the kernel may still be at it. 0, or -1 with *err (ENODEV).
 */
int disk_find(unsigned lun, struct disk *out, struct err *err);

/* The kernel forgets the unit, so that another may come at its number. One that is not there is no error. */
void disk_forget(unsigned lun);
