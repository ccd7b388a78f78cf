/*
 * Holds one file open and one MAP_SHARED mapping of it, and does what stdin says, a line a command; answers "ok" or
 * "error ERRNO". All numbers are decimal, offsets are of the file.
 *
 *   map OFFSET LENGTH | store OFFSET LENGTH BYTE | write OFFSET LENGTH BYTE | msync | munmap | close
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static char *mapping;
static long long base, mapped;

static int put(int fd, long long offset, long long length, int byte)
{
	char *buffer = malloc(length);
	long long done;

	if (!buffer)
		return -1;
	memset(buffer, byte, length);
	done = pwrite(fd, buffer, length, offset);
	free(buffer);
	return done == length ? 0 : -1;
}

int main(int argc, char **argv)
{
	long long offset, length;
	char line[256];
	int fd, byte;

	if (argc != 2 || (fd = open(argv[1], O_RDWR)) < 0) {
		perror("mapper FILE");
		return 2;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	while (fgets(line, sizeof(line), stdin)) {
		int result = -1;

		errno = EINVAL;
		if (sscanf(line, "map %lld %lld", &base, &mapped) == 2) {
			mapping = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_SHARED, fd, base);
			result = mapping == MAP_FAILED ? -1 : 0;
		} else if (sscanf(line, "store %lld %lld %d", &offset, &length, &byte) == 3) {
			memset(mapping + (offset - base), byte, length);
			result = 0;
		} else if (sscanf(line, "write %lld %lld %d", &offset, &length, &byte) == 3) {
			result = put(fd, offset, length, byte);
		} else if (strncmp(line, "msync", 5) == 0) {
			result = msync(mapping, mapped, MS_SYNC);
		} else if (strncmp(line, "munmap", 6) == 0) {
			result = munmap(mapping, mapped);
		} else if (strncmp(line, "close", 5) == 0) {
			result = close(fd);
		}
		if (result == 0)
			puts("ok");
		else
			printf("error %d\n", errno);
	}
	return 0;
}
