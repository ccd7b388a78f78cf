/*
 * Writers that preempt one another: contend DIRECTORY NORMAL FIFO COUNT
 *
 * NORMAL threads make COUNT writes each as fast as they can; FIFO real-time threads, of two priorities, wake up at odd
 * moments and make a write each time until the others are done. All are on the first processor. Thread N writes its
 * I-th word, I itself, into DIRECTORY/N at offset 8 * I. Exit 0 if all writes were complete.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define MOST 64
#define LONGEST 400000 /* ns between two writes of a real-time thread */

static atomic_int busy;
static long normal, fifo, count;
static char *const failed = "";

static int put(int fd, uint64_t number)
{
	return pwrite(fd, &number, sizeof(number), 8 * number) == sizeof(number) ? 0 : -1;
}

static void *run(void *argument)
{
	long number = (long)argument, real_time = number - normal;
	struct sched_param priority = {.sched_priority = 10 + real_time % 2};
	unsigned int seed = number;
	char name[16];
	int fd;

	snprintf(name, sizeof(name), "%ld", number);
	fd = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	if (fd < 0)
		return failed;
	if (real_time < 0) {
		for (long at = 0; at < count; at++)
			if (put(fd, at))
				return failed;
		busy--;
	} else {
		if (pthread_setschedparam(pthread_self(), SCHED_FIFO, &priority))
			return failed;
		for (long at = 0; busy > 0; at++) {
			struct timespec pause = {.tv_nsec = rand_r(&seed) % LONGEST};

			nanosleep(&pause, NULL);
			if (put(fd, at))
				return failed;
		}
	}
	close(fd);
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t threads[MOST];
	cpu_set_t first;
	int bad = 0;

	if (argc != 5 || chdir(argv[1])) {
		fprintf(stderr, "contend DIRECTORY NORMAL FIFO COUNT\n");
		return 2;
	}
	normal = atol(argv[2]);
	fifo = atol(argv[3]);
	count = atol(argv[4]);
	busy = normal;
	CPU_ZERO(&first);
	CPU_SET(0, &first);
	if (normal + fifo > MOST || sched_setaffinity(0, sizeof(first), &first)) {
		perror("contend");
		return 1;
	}
	for (long at = 0; at < normal + fifo; at++)
		if (pthread_create(&threads[at], NULL, run, (void *)at)) {
			perror("contend");
			return 1;
		}
	for (long at = 0; at < normal + fifo; at++) {
		void *result;

		pthread_join(threads[at], &result);
		bad |= result != NULL;
	}
	return bad;
}
