/* clang --target=wasm32-wasi -O2 -I../../include hello.c -o hello.wasm */

#include <forgeone.h>
#include <stdio.h>
#include <string.h>

static const char *const states[] = {"created", "booted", "running", "paused", "stopping", "terminated"};

int main(void) {
    char id[64];
    if (forgeone_identity(FORGEONE_ID, id, sizeof id) != sizeof id) {
        return 1;
    }
    printf("container %.12s is %s\n", id, states[forgeone_state()]);

    struct forgeone_limits limits;
    forgeone_limits(&limits, sizeof limits);
    printf("memory limit: %llu bytes\n", (unsigned long long)limits.memory);

    struct forgeone_transition steps[64];
    int32_t size = forgeone_history(steps, sizeof steps);
    for (int32_t at = 0; at < size / (int32_t)sizeof steps[0] && at < 64; at++) {
        printf("%s -> %s\n", states[steps[at].before], states[steps[at].after]);
    }

    forgeone_yield();

    const char *message = "two lines\nin one";
    return forgeone_log(FORGEONE_INFO, "example", 7, message, strlen(message)) == 0 ? 0 : 1;
}
