/*
 * Threads that write the same places over and over: hammer FILE places|growing SECONDS THREADS
 *   places: all write into one page, each into a slot of its own, and go on to the next page together
 *   growing: each adds a record to the end, writes it anew some times, and adds the next
 * Every write is a counter, so that a place's last state is no earlier one's. Threads are spread over the processors;
 * now and then one naps. Prints how many writes were made; exit 0 if all were complete.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define PAGES 16384
#define SLOT 64
#define MOST 16

static int fd, growing;
static double deadline;
static atomic_long place;

struct writer {
	pthread_t thread;
	unsigned seed;
	int number;
	long writes;
	int failed;
};

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

static unsigned pick(struct writer *writer, unsigned below)
{
	return rand_r(&writer->seed) % below;
}

/* Writes of one place, from a few to many. */
static void burst(struct writer *writer, long at, int count, int follow)
{
	char slot[SLOT];

	for (int i = 0; i < count && !writer->failed; i++) {
		if (follow && atomic_load(&place) != at / PAGE)
			return;
		memset(slot, 'a' + writer->number, SLOT);
		snprintf(slot, SLOT, "%d %ld", writer->number, ++writer->writes);
		writer->failed = pwrite(fd, slot, SLOT, at) != SLOT;
		if (pick(writer, 2048) == 0)
			usleep(pick(writer, 500));
	}
}

static void *hammer(void *argument)
{
	struct writer *writer = argument;
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	CPU_SET(writer->number % sysconf(_SC_NPROCESSORS_ONLN), &cpus);
	sched_setaffinity(0, sizeof(cpus), &cpus); /* where that is not allowed, anywhere */
	while (now() < deadline && !writer->failed) {
		if (growing) {
			burst(writer, atomic_fetch_add(&place, 1) * SLOT, 1 + pick(writer, 500), 0);
		} else {
			burst(writer, atomic_load(&place) * PAGE + writer->number * SLOT, 1 + pick(writer, 3000),
			      writer->number != 0);
			if (writer->number == 0)
				atomic_store(&place, (atomic_load(&place) + 1) % PAGES);
		}
	}
	return NULL;
}

int main(int argc, char **argv)
{
	static struct writer writers[MOST];
	long writes = 0;
	int failed = 0;
	int threads;

	if (argc != 5 || (threads = atoi(argv[4])) < 1 || threads > MOST) {
		fprintf(stderr, "hammer FILE places|growing SECONDS THREADS\n");
		return 2;
	}
	growing = strcmp(argv[2], "growing") == 0;
	fd = open(argv[1], O_WRONLY | O_CREAT, 0644);
	if (fd < 0 || (!growing && ftruncate(fd, (long)PAGE * PAGES))) {
		perror(argv[1]);
		return 1;
	}
	deadline = now() + atof(argv[3]);
	for (int i = 0; i < threads; i++) {
		writers[i].number = i;
		writers[i].seed = 7919 * (i + 1);
		failed |= pthread_create(&writers[i].thread, NULL, hammer, &writers[i]);
	}
	for (int i = 0; i < threads; i++) {
		failed |= pthread_join(writers[i].thread, NULL);
		failed |= writers[i].failed;
		writes += writers[i].writes;
	}
	printf("%ld\n", writes);
	return failed;
}
