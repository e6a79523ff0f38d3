/*
 * What a WebAssembly guest may ask of ForgeOne besides WASI, version 1.1.
 *
 * Every function returns a number that is negative on error: FORGEONE_EFAULT where it was given an address that is not
 * in its memory, FORGEONE_EINVAL for any other argument it cannot take.
 *
 * What is larger than the buffer it is asked into is cut off; the number returned is its whole size in bytes. Structures
 * may get more fields at their end: a guest asks with the size that it knows.
 */
#ifndef FORGEONE_H
#define FORGEONE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define FORGEONE_ABI_MAJOR 1
#define FORGEONE_ABI_MINOR 1

#define FORGEONE_EFAULT (-21)
#define FORGEONE_EINVAL (-28)

#define FORGEONE_IMPORT(module, name) __attribute__((import_module(module), import_name(name)))

/* --- forgeone:introspect --- */

enum forgeone_identity {
    FORGEONE_ID = 0,     /* 64 hexadecimal digits */
    FORGEONE_NAME = 1,   /* the container's name in its pod */
    FORGEONE_POD_ID = 2,
};

enum forgeone_state {
    FORGEONE_CREATED = 0,
    FORGEONE_BOOTED = 1,
    FORGEONE_RUNNING = 2,
    FORGEONE_PAUSED = 3,
    FORGEONE_STOPPING = 4,
    FORGEONE_TERMINATED = 5,
};

enum forgeone_event {
    FORGEONE_BOOT = 0,
    FORGEONE_START = 1,
    FORGEONE_PAUSE = 2,
    FORGEONE_RESUME = 3,
    FORGEONE_STOP = 4,
    FORGEONE_EXIT = 5,
};

/* As they are now: an update of the container shows. 0 where there is no limit. */
struct forgeone_limits {
    uint64_t memory;        /* bytes of the whole process: the control group's */
    uint64_t linear_memory; /* bytes of each linear memory */
    uint64_t cpu_quota;     /* microseconds of processor time ... */
    uint64_t cpu_period;    /* ... in each so many microseconds */
    uint64_t cpu_shares;    /* weight among the containers of the node, 1024 being the usual one */
    uint64_t cpu_budget;    /* nanoseconds of processor time in all */
};

/* So far, of the process that the guest runs in. */
struct forgeone_usage {
    uint64_t cpu_user;      /* nanoseconds of processor time in the guest */
    uint64_t cpu_system;    /* nanoseconds of processor time in the kernel for it */
    uint64_t resident_peak; /* bytes: the most memory it ever had */
};

/* How the container is known on its node, as of its last step. Since version 1.1. */
struct forgeone_trust {
    uint8_t fingerprint[32]; /* SHA-256 of everything that decides what runs; nought where there is none */
    uint8_t contract[32];    /* SHA-256 of the contract that holds for it; nought where there is none */
    uint32_t entropy;        /* bits of fresh seed since its state could last be somebody else's */
    uint32_t score;          /* how far it is to be trusted, 0 to 100 */
};

struct forgeone_transition {
    uint64_t at;    /* nanoseconds since 1970 */
    uint8_t before; /* enum forgeone_state */
    uint8_t event;  /* enum forgeone_event */
    uint8_t after;  /* enum forgeone_state */
    uint8_t reserved[5];
};

/* One of enum forgeone_identity as text, without a zero at its end. */
FORGEONE_IMPORT("forgeone:introspect@1", "identity")
int32_t forgeone_identity(uint32_t what, char *buffer, uint32_t size);

/* One of enum forgeone_state. */
FORGEONE_IMPORT("forgeone:introspect@1", "state")
int32_t forgeone_state(void);

FORGEONE_IMPORT("forgeone:introspect@1", "limits")
int32_t forgeone_limits(struct forgeone_limits *limits, uint32_t size);

FORGEONE_IMPORT("forgeone:introspect@1", "usage")
int32_t forgeone_usage(struct forgeone_usage *usage, uint32_t size);

/* The latest steps of the container's life, oldest first. */
FORGEONE_IMPORT("forgeone:introspect@1", "history")
int32_t forgeone_history(struct forgeone_transition *transitions, uint32_t size);

/* Since version 1.1. */
FORGEONE_IMPORT("forgeone:introspect@1", "trust")
int32_t forgeone_trust(struct forgeone_trust *trust, uint32_t size);

/* --- forgeone:log --- */

enum forgeone_level {
    FORGEONE_TRACE = 0,
    FORGEONE_DEBUG = 1,
    FORGEONE_INFO = 2,
    FORGEONE_WARN = 3,
    FORGEONE_ERROR = 4,
    FORGEONE_CRITICAL = 5,
};

/*
 * A line of the container's log on standard error: a JSON object with time, level, context and message. A line feed in a
 * message stays within its line. At most 64 KiB of a context and a message are taken. Returns 0.
 */
FORGEONE_IMPORT("forgeone:log@1", "write")
int32_t forgeone_log(uint32_t level, const char *context, uint32_t context_size, const char *message,
                     uint32_t message_size);

/* --- forgeone:yield --- */

/*
 * Give up the rest of this slice of time: returns once others that wait for the processor have had a turn. A container
 * that is paused meanwhile goes on from here. Returns 0.
 */
FORGEONE_IMPORT("forgeone:yield@1", "give_up")
int32_t forgeone_yield(void);

#ifdef __cplusplus
}
#endif

#endif
