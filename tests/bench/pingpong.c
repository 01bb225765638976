/*
 * An independent yardstick: UDP ping-pong between two network namespaces, both ends on one core.
 *
 *   pingpong CLIENT_NETNS SERVER_NETNS ADDRESS PORT COUNT CPU [HEX_PAYLOAD [blocks]]
 *
 * Both ends are processes of this program, pinned to CPU, so that a round trip costs two context switches and
 * no migration. HEX_PAYLOAD (64 bytes of zeros without it) is what every datagram carries; the server echoes it.
 * Prints one line for each round trip after 200 that are not counted: its nanoseconds, and the CLOCK_MONOTONIC of
 * the client's send call and of the return of the server's receive call.
 *
 * With "blocks" it does so again and again: every line read, "FIRST COUNT", is one block of COUNT round trips after 10
 * that are not counted, and an empty line ends its output. FIRST is the number of the first, counted up in bytes 8 to 11
 * of the payload (0 in the round trips before); -1: a payload of zeros. "FIRST COUNT new": each counted round trip
 * from a port of its own, on a socket that is opened before its time is taken.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define WARM_UP 200
#define BLOCK_WARM_UP 10
#define MOST 65536

static void fail(const char *what)
{
	fprintf(stderr, "pingpong: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void enter(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || setns(fd, CLONE_NEWNET))
		fail(path);
	close(fd);
}

static int open_socket(void)
{
	struct timeval limit = { .tv_sec = 2 };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)))
		fail("socket");
	return fd;
}

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ULL + t.tv_nsec;
}

static uint64_t *received; /* shared by both processes */

static void serve(const char *netns, const struct sockaddr_in *local, int ready)
{
	unsigned long number = 0;

	unsigned char buffer[2048];
	struct sockaddr_in peer;
	int fd;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	enter(netns);
	fd = open_socket();
	if (bind(fd, (const struct sockaddr *)local, sizeof(*local)))
		fail("bind");
	if (write(ready, "r", 1) != 1)
		fail("handshake");
	for (;;) {
		socklen_t size = sizeof(peer);
		ssize_t got = recvfrom(fd, buffer, sizeof(buffer), 0, (struct sockaddr *)&peer, &size);

		if (got < 0 && errno == EAGAIN)
			continue; /* between two blocks; ends with its parent */
		if (got < 0)
			exit(1);
		received[number++ % MOST] = now();
		if (sendto(fd, buffer, got, 0, (struct sockaddr *)&peer, size) != got)
			fail("answer");
	}
}

static unsigned char payload[512];
static size_t size = 64;
static unsigned long sent_in_all;

static int connected(const struct sockaddr_in *server)
{
	int fd = open_socket();

	if (connect(fd, (const struct sockaddr *)server, sizeof(*server)))
		fail("connect");
	return fd;
}

static void run(int usual, long count, long warm_up, long first, int marked, const struct sockaddr_in *fresh)
{
	static const unsigned char nothing[512];
	unsigned char answer[2048];

	for (long i = -warm_up; i < count; i++) {
		unsigned long slot = sent_in_all++ % MOST;
		int fd = fresh && i >= 0 ? connected(fresh) : usual;
		uint64_t start, end;

		if (first >= 0) {
			uint32_t number = htonl(i < 0 ? 0 : first + i);

			memcpy(payload + 8, &number, 4);
		}
		start = now();
		if (send(fd, marked ? payload : nothing, size, 0) != (ssize_t)size ||
		    recv(fd, answer, sizeof(answer), 0) != (ssize_t)size)
			fail("round trip");
		end = now();
		if (i >= 0)
			printf("%llu %llu %llu\n", (unsigned long long)(end - start), (unsigned long long)start,
			       (unsigned long long)received[slot]);
		if (fd != usual)
			close(fd);
	}
}

int main(int argc, char **argv)
{
	struct sockaddr_in server = { .sin_family = AF_INET }, any = { .sin_family = AF_INET };
	cpu_set_t cpus;
	int pair[2], fd;
	long first, count;
	pid_t child;
	char byte, line[64];

	if (argc < 7) {
		fprintf(stderr, "usage: pingpong CLIENT_NETNS SERVER_NETNS ADDRESS PORT COUNT CPU [HEX_PAYLOAD [blocks]]\n");
		return 2;
	}
	if (inet_pton(AF_INET, argv[3], &server.sin_addr) != 1)
		fail("address");
	server.sin_port = any.sin_port = htons(atoi(argv[4]));
	if (argc > 7) {
		size = strlen(argv[7]) / 2;
		if (size > sizeof(payload))
			size = sizeof(payload);
		for (size_t i = 0; i < size; i++)
			sscanf(argv[7] + 2 * i, "%2hhx", &payload[i]);
	}
	received = mmap(NULL, MOST * sizeof(*received), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (received == MAP_FAILED)
		fail("memory");
	CPU_ZERO(&cpus);
	CPU_SET(atoi(argv[6]), &cpus);
	if (sched_setaffinity(0, sizeof(cpus), &cpus) || pipe2(pair, O_CLOEXEC))
		fail("set-up");
	child = fork();
	if (child < 0)
		fail("fork");
	if (!child)
		/* At any address: on the way ADDRESS may be translated to another one. */
		serve(argv[2], &any, pair[1]);
	close(pair[1]);
	if (read(pair[0], &byte, 1) != 1)
		return 1;
	enter(argv[1]);
	fd = connected(&server);
	if (argc > 8) {
		while (fgets(line, sizeof(line), stdin) && sscanf(line, "%ld %ld", &first, &count) == 2) {
			run(fd, count, BLOCK_WARM_UP, first, first >= 0, strstr(line, "new") ? &server : NULL);
			printf("\n");
			fflush(stdout);
		}
	} else {
		run(fd, atol(argv[5]), WARM_UP, -1, 1, NULL);
	}
	kill(child, SIGKILL);
	return 0;
}
