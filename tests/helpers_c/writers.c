/*
 * Two writers at once on one file: writers FILE append|shared COUNT LENGTH
 *   append: two processes, each with a descriptor of its own, O_APPEND
 *   shared: two threads with one descriptor and one file position
 * Each makes COUNT writes of LENGTH bytes, the first of 'a', the second of 'b'. Exit 0 if all were complete.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static int fd, count, length;

static long emit(int byte)
{
	char *buffer = malloc(length);
	long short_writes = 0;

	memset(buffer, byte, length);
	for (int i = 0; i < count; i++)
		short_writes += write(fd, buffer, length) != length;
	free(buffer);
	return short_writes;
}

static void *thread(void *byte)
{
	return (void *)emit((int)(long)byte);
}

int main(int argc, char **argv)
{
	void *bad = NULL;
	pthread_t other;
	int status = 0;
	long mine;

	if (argc != 5) {
		fprintf(stderr, "writers FILE append|shared COUNT LENGTH\n");
		return 2;
	}
	count = atoi(argv[3]);
	length = atoi(argv[4]);
	if (strcmp(argv[2], "append") == 0) {
		pid_t child = fork();

		fd = open(argv[1], O_WRONLY | O_APPEND);
		mine = fd < 0 ? 1 : emit(child == 0 ? 'b' : 'a');
		if (child == 0)
			_exit(mine != 0);
		waitpid(child, &status, 0);
		return mine != 0 || status != 0;
	}
	fd = open(argv[1], O_WRONLY);
	if (fd < 0 || pthread_create(&other, NULL, thread, (void *)(long)'b') != 0) {
		perror(argv[1]);
		return 1;
	}
	mine = emit('a');
	pthread_join(other, &bad);
	return mine != 0 || bad != NULL;
}
