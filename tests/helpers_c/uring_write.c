/*
 * One io_uring write: uring_write FILE write|writev|write_fixed OFFSET LENGTH BYTE [quiet]
 * "quiet" asks for no completion of a success (IOSQE_CQE_SKIP_SUCCESS); a barrier request tells when it is done.
 * Exit 0 if all bytes were written, else 1 with the cause on stderr.
 */
#include <fcntl.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct io_uring_cqe *cqe;
	struct io_uring_sqe *sqe;
	struct io_uring ring;
	struct iovec parts[2], whole;
	long long offset, length;
	int fd, quiet, result;
	char *buffer;

	if (argc < 6) {
		fprintf(stderr, "uring_write FILE write|writev|write_fixed OFFSET LENGTH BYTE [quiet]\n");
		return 2;
	}
	offset = atoll(argv[3]);
	length = atoll(argv[4]);
	quiet = argc > 6;
	fd = open(argv[1], O_WRONLY);
	if (fd < 0 || posix_memalign((void **)&buffer, 4096, length)) {
		perror(argv[1]);
		return 1;
	}
	memset(buffer, atoi(argv[5]), length);
	result = io_uring_queue_init(8, &ring, 0);
	if (result < 0) {
		fprintf(stderr, "io_uring_queue_init: %s\n", strerror(-result));
		return 1;
	}
	sqe = io_uring_get_sqe(&ring);
	if (strcmp(argv[2], "write") == 0) {
		io_uring_prep_write(sqe, fd, buffer, length, offset);
	} else if (strcmp(argv[2], "writev") == 0) {
		parts[0] = (struct iovec){ buffer, length / 2 };
		parts[1] = (struct iovec){ buffer + length / 2, length - length / 2 };
		io_uring_prep_writev(sqe, fd, parts, 2, offset);
	} else {
		whole = (struct iovec){ buffer, length };
		result = io_uring_register_buffers(&ring, &whole, 1);
		if (result < 0) {
			fprintf(stderr, "io_uring_register_buffers: %s\n", strerror(-result));
			return 1;
		}
		io_uring_prep_write_fixed(sqe, fd, buffer, length, offset, 0);
	}
	if (quiet) {
		sqe->flags |= IOSQE_CQE_SKIP_SUCCESS | IOSQE_IO_LINK;
		sqe = io_uring_get_sqe(&ring);
		io_uring_prep_nop(sqe);
	}
	result = io_uring_submit_and_wait(&ring, 1);
	if (result < 0 || io_uring_wait_cqe(&ring, &cqe) < 0) {
		fprintf(stderr, "io_uring: %s\n", strerror(-result));
		return 1;
	}
	if (cqe->res != (quiet ? 0 : length)) {
		fprintf(stderr, "io_uring completed with %d\n", cqe->res);
		return 1;
	}
	io_uring_queue_exit(&ring);
	return 0;
}
