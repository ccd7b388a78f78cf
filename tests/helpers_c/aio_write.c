/*
 * One libaio write: aio_write FILE buffered|direct|pieces OFFSET LENGTH BYTE
 *   pieces: from many buffers at once
 * Exit 0 if all bytes were written, else 1 with the cause on stderr.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <libaio.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PIECES 16

int main(int argc, char **argv)
{
	struct iovec pieces[PIECES];
	struct io_event event;
	io_context_t context = 0;
	struct iocb request, *requests[1] = { &request };
	long long offset, length;
	char *buffer;
	int fd, result;

	if (argc != 6) {
		fprintf(stderr, "aio_write FILE buffered|direct|pieces OFFSET LENGTH BYTE\n");
		return 2;
	}
	offset = atoll(argv[3]);
	length = atoll(argv[4]);
	fd = open(argv[1], O_WRONLY | (strcmp(argv[2], "direct") == 0 ? O_DIRECT : 0));
	if (fd < 0 || posix_memalign((void **)&buffer, 4096, length)) {
		perror(argv[1]);
		return 1;
	}
	memset(buffer, atoi(argv[5]), length);
	result = io_setup(8, &context);
	if (result < 0) {
		fprintf(stderr, "io_setup: %s\n", strerror(-result));
		return 1;
	}
	if (strcmp(argv[2], "pieces") == 0) {
		for (int i = 0; i < PIECES; i++) {
			pieces[i].iov_base = buffer + length * i / PIECES;
			pieces[i].iov_len = length * (i + 1) / PIECES - length * i / PIECES;
		}
		io_prep_pwritev(&request, fd, pieces, PIECES, offset);
	} else {
		io_prep_pwrite(&request, fd, buffer, length, offset);
	}
	result = io_submit(context, 1, requests);
	if (result != 1) {
		fprintf(stderr, "io_submit: %s\n", strerror(-result));
		return 1;
	}
	if (io_getevents(context, 1, 1, &event, NULL) != 1 || (long long)event.res != length) {
		fprintf(stderr, "completed with %lld\n", (long long)event.res);
		return 1;
	}
	io_destroy(context);
	return 0;
}
