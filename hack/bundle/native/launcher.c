/* Starts a command of the bundle, or its Python, with nothing of the host's but what is named here.
 *
 * Static, so that no loader and no library of the host's is met before. COMMAND is the name it is compiled for, "python3" for
 * the interpreter itself; it lies in ROOT/bin, where /proc/self/exe finds it whatever links have led there. It executes
 * ROOT/lib/forgeone/programs/COMMAND, a link to the interpreter, which thereby gets the command's name (comm, see proc(5));
 * the interpreter is told that it is ROOT/bin/python3, and so does what it starts by sys.executable come through here.
 */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern char **environ;

/* What changes how the loader, libc, OpenSSL or Python find their files. */
static const char *const DROPPED[] = {"LD_", "PYTHON", "LC_", "LANG", "OPENSSL_", "GCONV_PATH=", "LOCPATH=", "NLSPATH=", NULL};

/* Where distributions keep the authorities that they trust: Debian, Fedora and RHEL, SUSE, others. */
static const char *const AUTHORITIES[] = {"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem",
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", "/etc/ssl/cert.pem", NULL};

static const char PATH_DEFAULT[] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

static void fail(const char *what)
{
	fprintf(stderr, "%s: %s: %s\n", COMMAND, what, strerror(errno));
	exit(127);
}

static char *joined(const char *first, const char *second, const char *third)
{
	char *made;
	if (asprintf(&made, "%s%s%s", first, second, third) < 0)
		fail("memory");
	return made;
}

/* ROOT, from ROOT/bin/COMMAND. */
static char *root(void)
{
	static char path[PATH_MAX];
	ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
	if (length < 0)
		fail("/proc/self/exe");
	path[length] = '\0';
	for (int parts = 0; parts < 2; parts++) {
		char *slash = strrchr(path, '/');
		if (!slash) {
			errno = EINVAL;
			fail("/proc/self/exe");
		}
		*slash = '\0';
	}
	return path;
}

static void drop(void)
{
	char **kept = environ;
	for (char **one = environ; *one; one++) {
		int dropped = 0;
		for (const char *const *name = DROPPED; *name && !dropped; name++)
			dropped = strncmp(*one, *name, strlen(*name)) == 0;
		if (!dropped)
			*kept++ = *one;
	}
	*kept = NULL;
}

static void set(const char *name, const char *value)
{
	if (setenv(name, value, 1))
		fail(name);
}

static void trust(const char *top)
{
	if (getenv("SSL_CERT_FILE") || getenv("SSL_CERT_DIR"))
		return;
	for (const char *const *file = AUTHORITIES; *file; file++)
		if (access(*file, R_OK) == 0) {
			set("SSL_CERT_FILE", *file);
			return;
		}
	set("SSL_CERT_FILE", joined(top, "/share/ca-certificates.crt", ""));
}

/* The bundle's programs come first: those of the host's by the same names may be of any version. */
static void find(const char *top)
{
	const char *before = getenv("PATH");
	char *bin = joined(top, "/bin:", "");
	if (!before || !*before)
		before = PATH_DEFAULT;
	if (strncmp(before, bin, strlen(bin)) != 0)
		set("PATH", joined(bin, before, ""));
}

int main(int argc, char **argv)
{
	char *top = root();
	char **words = calloc((size_t)argc + 4, sizeof *words);
	int count = 0;
	if (!words)
		fail("memory");
	drop();
	/* Python speaks UTF-8 in this locale (PEP 540), which needs no file. */
	set("LC_ALL", "C");
	trust(top);
	find(top);
	words[count++] = joined(top, "/bin/python3", "");
	words[count++] = "-I";
	/* All modules are compiled, and what lies on a node stays as it is in the manifest. */
	words[count++] = "-B";
	if (strcmp(COMMAND, "python3") != 0)
		words[count++] = joined(top, "/lib/forgeone/commands/", COMMAND);
	for (int word = 1; word < argc; word++)
		words[count++] = argv[word];
	char *program = joined(top, "/lib/forgeone/programs/", COMMAND);
	execv(program, words);
	fail(program);
}
