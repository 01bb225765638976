/*
 * Makes the lab relay a busy one, included before its source: every datagram it sends costs BUSY_NS more of its core while the
 * first byte of the file BUSY_FILE is not 0.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static long long busy_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static ssize_t busy_sendto(int fd, const void *data, size_t size, int flags, const struct sockaddr *to, socklen_t length)
{
	static const volatile unsigned char *busy;
	long long end;

	if (!busy) {
		int file = open(BUSY_FILE, O_RDONLY | O_CLOEXEC);

		busy = mmap(NULL, 1, PROT_READ, MAP_SHARED, file, 0);
		close(file);
	}
	if (busy != MAP_FAILED && *busy)
		for (end = busy_now() + BUSY_NS; busy_now() < end;)
			;
	return sendto(fd, data, size, flags, to, length);
}

#define sendto busy_sendto
