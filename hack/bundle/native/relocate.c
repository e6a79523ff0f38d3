/* Makes the bundle's programs those of the directory that it lies in, or will lie in: their loader and libraries are named by
 * absolute paths.
 *
 * The kernel takes a program's loader (PT_INTERP) by an absolute path, and a program that is executed from memory, as crun is,
 * has no origin that its libraries could be found from. Both paths are written with as many slashes as fill FIELD bytes, so
 * they are overwritten where they stand. Each program is replaced by a finished copy; killed at any moment, this leaves
 * programs that are whole, and does the rest when it is run again. Links are left alone.
 */
#include <dirent.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *const PLACES[] = {"bin", "lib/forgeone", NULL};
static const char LIBRARIES[] = "/lib";
static const char TEMPORARY[] = ".relocate-";

struct image {
	char *bytes;
	size_t size;
};

static void fail(const char *what)
{
	fprintf(stderr, "relocate: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void damaged(const char *path)
{
	errno = ENOEXEC;
	fail(path);
}

/* ROOT, slashes, TAIL: FIELD bytes and the end of the string. */
static void filled(char *field, const char *top, const char *tail)
{
	size_t before = strlen(top), after = strlen(tail);
	if (before + after > FIELD) {
		errno = ENAMETOOLONG;
		fail(top);
	}
	memset(field, '/', FIELD);
	memcpy(field, top, before);
	memcpy(field + FIELD - after, tail, after);
	field[FIELD] = '\0';
}

/* The bytes at OFFSET, where they are all in the file. */
static void *within(const struct image *file, size_t offset, size_t size, const char *path)
{
	if (offset > file->size || size > file->size - offset)
		damaged(path);
	return file->bytes + offset;
}

static size_t position(const Elf64_Phdr *headers, int count, Elf64_Addr address, const char *path)
{
	for (int number = 0; number < count; number++) {
		const Elf64_Phdr *one = &headers[number];
		if (one->p_type == PT_LOAD && address >= one->p_vaddr && address - one->p_vaddr < one->p_filesz)
			return address - one->p_vaddr + one->p_offset;
	}
	damaged(path);
	return 0;
}

/* Overwrite a field that the bundle made; returns whether it differed. */
static int write_field(const struct image *file, size_t offset, const char *value, const char *path)
{
	char *place = within(file, offset, FIELD + 1, path);
	if (place[0] != '/' || memchr(place, '\0', FIELD + 1) != place + FIELD)
		damaged(path);
	if (memcmp(place, value, FIELD) == 0)
		return 0;
	memcpy(place, value, FIELD);
	return 1;
}

/* Returns whether the image was changed. A file that is no program, or a static one, is none of ours. */
static int rewrite(const struct image *file, const char *interpreter, const char *libraries, const char *path)
{
	const Elf64_Ehdr *header = (const Elf64_Ehdr *)file->bytes;
	int changed = 0, dynamic = 0;
	if (file->size < sizeof *header || memcmp(header->e_ident, ELFMAG, SELFMAG) != 0)
		return 0;
	if (header->e_ident[EI_CLASS] != ELFCLASS64 || header->e_phentsize != sizeof(Elf64_Phdr))
		damaged(path);
	const Elf64_Phdr *headers = within(file, header->e_phoff, (size_t)header->e_phnum * sizeof *headers, path);
	for (int number = 0; number < header->e_phnum; number++)
		if (headers[number].p_type == PT_INTERP) {
			changed |= write_field(file, headers[number].p_offset, interpreter, path);
			dynamic = 1;
		}
	for (int number = 0; dynamic && number < header->e_phnum; number++) {
		if (headers[number].p_type != PT_DYNAMIC)
			continue;
		size_t entries = headers[number].p_filesz / sizeof(Elf64_Dyn), strings = 0;
		const Elf64_Dyn *entry = within(file, headers[number].p_offset, entries * sizeof *entry, path), *names = NULL;
		for (size_t one = 0; one < entries && entry[one].d_tag != DT_NULL; one++) {
			if (entry[one].d_tag == DT_STRTAB)
				strings = position(headers, header->e_phnum, entry[one].d_un.d_ptr, path);
			if (entry[one].d_tag == DT_RPATH)
				names = &entry[one];
		}
		if (!strings || !names)
			damaged(path);
		changed |= write_field(file, strings + names->d_un.d_val, libraries, path);
	}
	return changed;
}

static void read_all(int fd, struct image *file, size_t size, const char *path)
{
	file->size = size;
	file->bytes = malloc(size + 1);
	if (!file->bytes)
		fail(path);
	for (size_t done = 0; done < size;) {
		ssize_t more = read(fd, file->bytes + done, size - done);
		if (more == 0)
			damaged(path);
		if (more < 0)
			fail(path);
		done += (size_t)more;
	}
}

/* The copy takes the place of the program in one step, and a program that runs is not written to. */
static void replace(int directory, const char *name, const struct image *file, const struct stat *like, const char *path)
{
	char temporary[NAME_MAX + sizeof TEMPORARY];
	snprintf(temporary, sizeof temporary, "%s%s", TEMPORARY, name);
	if (unlinkat(directory, temporary, 0) && errno != ENOENT)
		fail(path);
	int fd = openat(directory, temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		fail(path);
	for (size_t done = 0; done < file->size;) {
		ssize_t more = write(fd, file->bytes + done, file->size - done);
		if (more < 0)
			fail(path);
		done += (size_t)more;
	}
	const struct timespec times[2] = {like->st_mtim, like->st_mtim};
	if (fchown(fd, like->st_uid, like->st_gid) || fchmod(fd, like->st_mode & 07777) || futimens(fd, times) || fsync(fd) || close(fd))
		fail(path);
	if (renameat(directory, temporary, directory, name))
		fail(path);
}

static int relocate(const char *top, const char *place, const char *interpreter, const char *libraries)
{
	char folder[PATH_MAX + 16], path[sizeof folder + NAME_MAX + 2];
	int changed = 0;
	snprintf(folder, sizeof folder, "%s/%s", top, place);
	DIR *listing = opendir(folder);
	if (!listing)
		fail(folder);
	for (struct dirent *entry; (entry = readdir(listing));) {
		struct stat found;
		struct image file;
		snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
		/* One that was killed has left it, or it has its place by now. */
		if (strncmp(entry->d_name, TEMPORARY, sizeof TEMPORARY - 1) == 0) {
			if (unlinkat(dirfd(listing), entry->d_name, 0) && errno != ENOENT)
				fail(path);
			continue;
		}
		if (fstatat(dirfd(listing), entry->d_name, &found, AT_SYMLINK_NOFOLLOW))
			fail(path);
		if (!S_ISREG(found.st_mode))
			continue;
		int fd = openat(dirfd(listing), entry->d_name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
		if (fd < 0)
			fail(path);
		read_all(fd, &file, (size_t)found.st_size, path);
		close(fd);
		if (rewrite(&file, interpreter, libraries, path)) {
			replace(dirfd(listing), entry->d_name, &file, &found, path);
			changed++;
		}
		free(file.bytes);
	}
	if (fsync(dirfd(listing)) || closedir(listing))
		fail(folder);
	return changed;
}

int main(int argc, char **argv)
{
	static char top[PATH_MAX], interpreter[FIELD + 1], libraries[FIELD + 1];
	ssize_t length = readlink("/proc/self/exe", top, sizeof top - 1);
	if (length < 0)
		fail("/proc/self/exe");
	top[length] = '\0';
	*strrchr(top, '/') = '\0';
	const char *prefix = argc > 1 ? argv[1] : top;
	if (argc > 2 || prefix[0] != '/') {
		fprintf(stderr, "usage: relocate [the absolute path of the directory where the bundle will lie]\n");
		return 2;
	}
	/* The loader takes the one for the next directory and the other for $ORIGIN, and PATH has the first, too. */
	if (strpbrk(prefix, ":$")) {
		fprintf(stderr, "relocate: %s: programs cannot name a directory with ':' or '$' in its path\n", prefix);
		return 2;
	}
	/* Two at a time would write the same temporary files. Held until the end. */
	int held = open(top, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (held < 0 || flock(held, LOCK_EX))
		fail(top);
	filled(interpreter, prefix, "/lib/" LOADER);
	filled(libraries, prefix, LIBRARIES);
	int changed = 0;
	for (const char *const *place = PLACES; *place; place++)
		changed += relocate(top, *place, interpreter, libraries);
	printf("%d programs relocated to %s\n", changed, prefix);
	return 0;
}
