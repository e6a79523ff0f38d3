// Small programs in one, chosen by the first argument: what they print, how they exit and what they leave in their
// directory must be the same wherever they run. The directory is /data; /ro is one that is read-only.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static int said(const char *what, int result) {
  printf("%s: %s\n", what, result < 0 ? strerror(errno) : "ok");
  return result;
}

static int put(const char *path, const char *text, int flags) {
  int fd = open(path, O_WRONLY | O_CREAT | flags, 0644);
  if (fd < 0)
    return fd;
  int result = (int)write(fd, text, strlen(text));
  close(fd);
  return result;
}

static int nothing(void) { return 0; }
static int exit_7(void) { exit(7); }
static int exit_125(void) { exit(125); }
static int returns_3(void) { return 3; }
static int quick(void) { printf("lost"); _Exit(4); }
static int aborts(void) { abort(); }
static int traps(void) { __builtin_trap(); }

static int divides(void) {
  volatile int zero = 0;
  return 1 / zero;
}

static int out_of_bounds(void) {
  volatile char *far = (char *)0xfffffff0u;
  return *far;
}

static volatile int depth_sink;
static int deep(int n) {
  volatile char room[64];
  room[n % 64] = (char)n;
  depth_sink = room[n % 64];
  return deep(n + 1) + depth_sink;
}
static int overflows(void) { return deep(0); }

static int calls_null(void) {
  int (*volatile function)(void) = 0;
  return function();
}

static void last(void) { puts("at exit"); }
static int at_exit(void) {
  atexit(last);
  puts("main");
  return 5;
}

static int environment(void) {
  for (char **one = environ; *one; one++)
    puts(*one);
  printf("HOME=%s\n", getenv("HOME") ? getenv("HOME") : "none");
  return 0;
}

static int copies(void) {
  char buffer[777];
  size_t got;
  while ((got = fread(buffer, 1, sizeof buffer, stdin)) > 0)
    fwrite(buffer, 1, got, stdout);
  return ferror(stdin) ? 1 : 0;
}

static int counts(void) {
  int lines = 0, c;
  while ((c = getchar()) != EOF)
    lines += c == '\n';
  printf("%d lines\n", lines);
  return 0;
}

static int errors(void) {
  fputs("to stderr\n", stderr);
  puts("to stdout");
  return 1;
}

static int much(void) {
  for (int i = 0; i < 20000; i++)
    printf("line %d of a long output\n", i);
  return 0;
}

static int writes(void) { return said("write", put("/data/new", "hello\n", O_TRUNC)) < 0; }

static int appends(void) {
  said("first", put("/data/log", "one\n", O_APPEND));
  said("second", put("/data/log", "two\n", O_APPEND));
  return 0;
}

static int exclusive(void) {
  said("first", put("/data/lock", "x", O_EXCL));
  said("second", put("/data/lock", "x", O_EXCL));
  return 0;
}

static int reads(void) {
  char buffer[64] = {0};
  int fd = open("/data/seed.txt", O_RDONLY);
  said("open", fd);
  printf("%zd\n", read(fd, buffer, sizeof buffer - 1));
  fputs(buffer, stdout);
  return 0;
}

static int seeks(void) {
  char buffer[8] = {0};
  int fd = open("/data/seed.txt", O_RDONLY);
  printf("%lld\n", (long long)lseek(fd, -4, SEEK_END));
  printf("%zd %s\n", read(fd, buffer, 3), buffer);
  printf("%zd %s\n", pread(fd, buffer, 4, 1), buffer);
  printf("%lld\n", (long long)lseek(fd, 0, SEEK_CUR));
  said("before", (int)lseek(fd, -1, SEEK_SET));
  return 0;
}

static int truncates(void) {
  int fd = open("/data/seed.txt", O_RDWR);
  said("shrink", ftruncate(fd, 3));
  said("grow", ftruncate(fd, 10));
  struct stat found;
  said("stat", fstat(fd, &found));
  printf("%lld\n", (long long)found.st_size);
  return 0;
}

static int directories(void) {
  said("mkdir", mkdir("/data/dir", 0755));
  said("again", mkdir("/data/dir", 0755));
  said("inside", put("/data/dir/file", "x", 0));
  said("full", rmdir("/data/dir"));
  said("unlink", unlink("/data/dir/file"));
  said("rmdir", rmdir("/data/dir"));
  return 0;
}

static int by_name(const struct dirent **a, const struct dirent **b) { return strcmp((*a)->d_name, (*b)->d_name); }
static int lists(void) {
  struct dirent **names;
  put("/data/b", "", 0);
  put("/data/a", "", 0);
  mkdir("/data/c", 0755);
  int count = scandir("/data", &names, 0, by_name);
  for (int i = 0; i < count; i++)
    printf("%s %d\n", names[i]->d_name, names[i]->d_type == DT_DIR);
  return 0;
}

static int renames(void) {
  said("rename", rename("/data/seed.txt", "/data/moved"));
  said("missing", rename("/data/seed.txt", "/data/moved"));
  return 0;
}

static int removes(void) {
  said("unlink", unlink("/data/seed.txt"));
  said("again", unlink("/data/seed.txt"));
  said("directory", unlink("/data"));
  return 0;
}

static int links(void) {
  struct stat found;
  said("link", link("/data/seed.txt", "/data/hard"));
  said("stat", stat("/data/hard", &found));
  printf("%d links\n", (int)found.st_nlink);
  return 0;
}

static int symlinks(void) {
  char buffer[64] = {0};
  said("symlink", symlink("seed.txt", "/data/soft"));
  printf("%zd ", readlink("/data/soft", buffer, sizeof buffer - 1));
  puts(buffer);
  struct stat found;
  said("lstat", lstat("/data/soft", &found));
  printf("%d\n", S_ISLNK(found.st_mode));
  said("through", open("/data/soft", O_RDONLY) < 0 ? -1 : 0);
  said("loop", symlink("loop", "/data/loop"));
  said("open", open("/data/loop", O_RDONLY) < 0 ? -1 : 0);
  return 0;
}

static int escapes(void) {
  said("dots", open("/data/../../../../../../etc/passwd", O_RDONLY) < 0 ? -1 : 0);
  said("absolute link", symlink("/etc/passwd", "/data/etc"));
  said("relative link", symlink("../../../../../../etc/passwd", "/data/up"));
  said("through", open("/data/up", O_RDONLY) < 0 ? -1 : 0);
  said("directory", symlink("..", "/data/parent"));
  said("through it", open("/data/parent/secret", O_RDONLY) < 0 ? -1 : 0);
  said("rename out", rename("/data/seed.txt", "/data/../seed.txt"));
  said("link out", link("/data/../secret", "/data/stolen"));
  said("make out", mkdir("/data/../made", 0755));
  return 0;
}

static int fails(void) {
  said("missing", open("/data/missing", O_RDONLY));
  said("elsewhere", open("/nowhere/file", O_RDONLY));
  said("a directory", open("/data", O_WRONLY));
  said("through a file", open("/data/seed.txt/x", O_RDONLY));
  said("no descriptor", (int)write(77, "x", 1));
  said("no directory", rmdir("/data/seed.txt"));
  char name[300];
  memset(name, 'n', sizeof name - 1);
  name[299] = 0;
  char path[400];
  snprintf(path, sizeof path, "/data/%s", name);
  said("a long name", put(path, "x", 0));
  return 0;
}

static int readonly(void) {
  char buffer[16] = {0};
  int fd = open("/ro/kept", O_RDONLY);
  said("read", (int)read(fd, buffer, 4));
  said("write", open("/ro/kept", O_WRONLY) < 0 ? -1 : 0);
  said("create", put("/ro/new", "x", 0));
  said("unlink", unlink("/ro/kept"));
  said("mkdir", mkdir("/ro/dir", 0755));
  said("rename", rename("/ro/kept", "/ro/other"));
  said("truncate", truncate("/ro/kept", 0));
  said("out of it", rename("/ro/kept", "/data/kept"));
  return 0;
}

static int changes_directory(void) {
  char buffer[128];
  said("chdir", chdir("/data"));
  puts(getcwd(buffer, sizeof buffer));
  said("relative", open("seed.txt", O_RDONLY) < 0 ? -1 : 0);
  said("missing", chdir("/data/missing"));
  return 0;
}

static int times(void) {
  struct timespec then[2] = {{.tv_sec = 1000000}, {.tv_sec = 2000000}};
  struct stat found;
  said("utimensat", utimensat(AT_FDCWD, "/data/seed.txt", then, 0));
  stat("/data/seed.txt", &found);
  printf("%lld\n", (long long)found.st_mtim.tv_sec);
  return 0;
}

static int clocks(void) {
  struct timespec before, after;
  clock_gettime(CLOCK_MONOTONIC, &before);
  usleep(20000);
  clock_gettime(CLOCK_MONOTONIC, &after);
  int64_t passed = (after.tv_sec - before.tv_sec) * 1000000000LL + after.tv_nsec - before.tv_nsec;
  printf("%d %d\n", passed >= 20000000, time(0) > 1600000000);
  return 0;
}

static int waits(void) {
  struct pollfd one = {.fd = 0, .events = POLLIN};
  printf("%d\n", poll(&one, 1, 1000));
  printf("%d\n", poll(0, 0, 10));
  return 0;
}

static int randoms(void) {
  unsigned char a[64], b[64];
  printf("%d %d\n", getentropy(a, 64), getentropy(b, 64));
  printf("%d\n", memcmp(a, b, 64) != 0);
  return 0;
}

static int terminals(void) {
  printf("%d %d %d\n", isatty(0), isatty(1), isatty(2));
  return 0;
}

static int standard(void) {
  struct stat found;
  for (int fd = 0; fd < 3; fd++)
    printf("%d\n", fstat(fd, &found));
  said("seek", (int)lseek(1, 0, SEEK_CUR));
  fflush(stdout);
  close(1);
  return write(1, "x", 1) < 0 && errno == EBADF ? 8 : 9;
}

static int floats(void) {
  printf("%.17g %.6f %a %g\n", 0.1, sqrt(2.0), 1.5, 1.0 / 3);
  printf("%g %g\n", NAN, -INFINITY);
  return 0;
}

static int order(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }
static int sorts(void) {
  static int numbers[10000];
  uint32_t seed = 1;
  for (int i = 0; i < 10000; i++)
    numbers[i] = (int)((seed = seed * 1664525u + 1013904223u) >> 8);
  qsort(numbers, 10000, sizeof *numbers, order);
  printf("%d %d %d\n", numbers[0], numbers[5000], numbers[9999]);
  return 0;
}

static int allocates(void) {
  char *big = malloc(32 << 20);
  memset(big, 7, 32 << 20);
  printf("%d\n", big[31 << 20]);
  printf("%s\n", malloc(0xf0000000u) ? "given" : "none");
  return 0;
}

static int files_left_open(void) {
  FILE *file = fopen("/data/buffered", "w");
  fprintf(file, "written at exit\n");
  return 0;
}

static int many_files(void) {
  int count = 0, fds[300];
  for (; count < 300; count++)
    if ((fds[count] = open("/data/seed.txt", O_RDONLY)) < 0)
      break;
  printf("%d\n", count);
  return close(fds[0]);
}

static int vectors(void) {
  int fd = open("/data/holes", O_RDWR | O_CREAT, 0644);
  said("past the end", (int)pwrite(fd, "end", 3, 5000));
  struct stat found;
  fstat(fd, &found);
  printf("%lld\n", (long long)found.st_size);
  char buffer[4] = {1, 1, 1, 1};
  printf("%zd %d\n", pread(fd, buffer, 4, 100), buffer[0]);
  return 0;
}

static const struct {
  const char *name;
  int (*run)(void);
} CASES[] = {
#define CASE(name) {#name, name}
    CASE(nothing),    CASE(exit_7),     CASE(exit_125),  CASE(returns_3),   CASE(quick),
    CASE(aborts),     CASE(traps),      CASE(divides),   CASE(out_of_bounds), CASE(overflows),
    CASE(calls_null), CASE(at_exit),    CASE(environment), CASE(copies),    CASE(counts),
    CASE(errors),     CASE(much),       CASE(writes),    CASE(appends),     CASE(exclusive),
    CASE(reads),      CASE(seeks),      CASE(truncates), CASE(directories), CASE(lists),
    CASE(renames),    CASE(removes),    CASE(links),     CASE(symlinks),    CASE(escapes),
    CASE(fails),      CASE(readonly),   CASE(changes_directory), CASE(times), CASE(clocks),
    CASE(waits),      CASE(randoms),    CASE(terminals), CASE(standard),    CASE(floats),
    CASE(sorts),      CASE(allocates),  CASE(files_left_open), CASE(many_files), CASE(vectors),
};

int main(int count, char **arguments) {
  if (count > 1 && !strcmp(arguments[1], "arguments")) {
    for (int i = 1; i < count; i++)
      printf("[%s]\n", arguments[i]);
    return count;
  }
  for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++)
    if (count > 1 && !strcmp(arguments[1], CASES[i].name))
      return CASES[i].run();
  for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++)
    puts(CASES[i].name);
  return 0;
}
