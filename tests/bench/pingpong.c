/*
 * An independent yardstick: UDP ping-pong between two network namespaces, both ends on one core.
 *
 *   pingpong CLIENT_NETNS SERVER_NETNS ADDRESS PORT COUNT CPU [HEX_PAYLOAD]
 *
 * Both ends are processes of this program, pinned to CPU, so that a round trip costs two context switches and
 * no migration. HEX_PAYLOAD (64 bytes of zeros without it) is what every datagram carries; the server echoes it.
 * Prints one round trip per line, in nanoseconds, after 200 that are not counted.
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
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define WARM_UP 200

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

static void serve(const char *netns, const struct sockaddr_in *local, int ready)
{
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

		if (got < 0)
			exit(errno == EAGAIN ? 0 : 1);
		if (sendto(fd, buffer, got, 0, (struct sockaddr *)&peer, size) != got)
			fail("answer");
	}
}

int main(int argc, char **argv)
{
	unsigned char payload[512] = { 0 }, answer[2048];
	struct sockaddr_in server = { .sin_family = AF_INET };
	size_t size = 64;
	cpu_set_t cpus;
	int pair[2], fd;
	long count;
	pid_t child;
	char byte;

	if (argc < 7) {
		fprintf(stderr, "usage: pingpong CLIENT_NETNS SERVER_NETNS ADDRESS PORT COUNT CPU [HEX_PAYLOAD]\n");
		return 2;
	}
	if (inet_pton(AF_INET, argv[3], &server.sin_addr) != 1)
		fail("address");
	server.sin_port = htons(atoi(argv[4]));
	count = atol(argv[5]);
	if (argc > 7) {
		size = strlen(argv[7]) / 2;
		if (size > sizeof(payload))
			size = sizeof(payload);
		for (size_t i = 0; i < size; i++)
			sscanf(argv[7] + 2 * i, "%2hhx", &payload[i]);
	}
	CPU_ZERO(&cpus);
	CPU_SET(atoi(argv[6]), &cpus);
	if (sched_setaffinity(0, sizeof(cpus), &cpus) || pipe2(pair, O_CLOEXEC))
		fail("set-up");
	child = fork();
	if (child < 0)
		fail("fork");
	if (!child)
		serve(argv[2], &server, pair[1]);
	close(pair[1]);
	if (read(pair[0], &byte, 1) != 1)
		return 1;
	enter(argv[1]);
	fd = open_socket();
	if (connect(fd, (struct sockaddr *)&server, sizeof(server)))
		fail("connect");
	for (long i = -WARM_UP; i < count; i++) {
		uint64_t start = now();

		if (send(fd, payload, size, 0) != (ssize_t)size || recv(fd, answer, sizeof(answer), 0) != (ssize_t)size)
			fail("round trip");
		if (i >= 0)
			printf("%llu\n", (unsigned long long)(now() - start));
	}
	kill(child, SIGKILL);
	return 0;
}
