/* The machine's disks, by the number of their SCSI unit, or what stands for it in a machine without SCSI. */
#pragma once

#include "agent.h"

/* "/dev/" and the disk's name. */
struct disk {
	char path[32];
};

/*
 * Waits until the unit 0:0:`lun` is there and can be read, a few seconds at most: it was plugged in before the request
 * was sent, and the kernel may still be at it. 0, or -1 with *err (ENODEV).
 */
int disk_find(unsigned lun, struct disk *out, struct err *err);
