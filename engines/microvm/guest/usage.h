/* What a container uses that no file of its cgroup says. */
#pragma once

#include "agent.h"

/* As a file "forgeone.stat" of "KEY NUMBER" lines. `layer` is its writable one, -1: none; `first` its process. */
void usage_reply(struct reply *reply, int cgroup, int layer, pid_t first);
