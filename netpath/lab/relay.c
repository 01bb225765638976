/*
 * A user-space tunnel of a lab: the lab relay, not flanneld and not weaver. It does to a packet what these do, and nothing else of theirs.
 *
 *     relay LAB NETNS tun DEVICE ADDRESS LISTEN PORT SUBNET/BITS=NODE...    flannel, backend udp (pkg/backend/udp/proxy_amd64.c)
 *     relay LAB NETNS tap DEVICE NAME LISTEN PORT NAME=NODE...              weave's sleeve, unencrypted (router/sleeve.go, crypto.go)
 *
 * It begins when a line comes by stdin; if stdin closes before that (the builder died), it ends. LAB is for those who look for
 * the lab's processes. When the device and the socket are there it answers "ready".
 *
 * tun: makes the TUN device, whose life is the relay's. The payload of a datagram is the IP packet, nothing else. Each relay takes
 * one from the packet's TTL. What no subnet takes is answered with ICMP network unreachable.
 *
 * tap: captures what comes out of the device and sends it to the node behind which its destination was seen, or to all; frames of
 * the others are written to the device. A peer's name is six bytes, written as a MAC address. A datagram is the sender's name,
 * and then a frame: its origin's name, its target's name, its length in two bytes, and the frame.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <netinet/if_ether.h>
#include <netinet/ip.h>
#include <netinet/ip_icmp.h>
#include <netpacket/packet.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#ifndef PACKET_IGNORE_OUTGOING
#define PACKET_IGNORE_OUTGOING 23
#endif

#define NAME "lab relay"
#define LARGEST 65536
#define PEERS 64
#define MACS 4096 /* a power of two; as many places are known at a time */
#define NAME_BYTES 6
#define PACKET_BYTES NAME_BYTES                    /* NonEncryptor's prefix */
#define FRAME_BYTES (NAME_BYTES + NAME_BYTES + 2)
#define HERE PEERS

struct peer {
	uint32_t network, mask;
	uint8_t name[NAME_BYTES];
	struct sockaddr_in node;
};

struct place {
	uint8_t mac[ETH_ALEN];
	uint8_t known, peer;
};

static struct peer peers[PEERS];
static int count;
static uint8_t own[NAME_BYTES];
static uint32_t address;
static struct place places[MACS];
static uint8_t buffer[LARGEST + 64];

static void die(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(1);
}

static void refuse(const char *what)
{
	fprintf(stderr, "%s is not understood\n", what);
	exit(2);
}

static void wants_name(const char *text, uint8_t *name)
{
	unsigned part[NAME_BYTES];
	int end = 0;

	if (sscanf(text, "%2x:%2x:%2x:%2x:%2x:%2x%n", part, part + 1, part + 2, part + 3, part + 4, part + 5, &end) != 6 || text[end])
		refuse(text);
	for (int number = 0; number < NAME_BYTES; number++)
		name[number] = part[number];
}

static void wants_address(const char *text, uint32_t *found)
{
	if (inet_pton(AF_INET, text, found) != 1)
		refuse(text);
}

static void wants_peer(char *text, int tun, int port)
{
	struct peer *peer = peers + count;
	char *node = strchr(text, '='), *bits;

	if (!node || count == PEERS)
		refuse(text);
	*node++ = 0;
	if (tun) {
		bits = strchr(text, '/');
		if (!bits || atoi(bits + 1) < 1 || atoi(bits + 1) > 32)
			refuse(text);
		*bits++ = 0;
		wants_address(text, &peer->network);
		peer->mask = htonl(0xffffffffu << (32 - atoi(bits)));
		peer->network &= peer->mask;
	} else
		wants_name(text, peer->name);
	peer->node.sin_family = AF_INET;
	peer->node.sin_port = htons(port);
	wants_address(node, &peer->node.sin_addr.s_addr);
	count++;
}

/* RFC 1071 */
static uint16_t checksum(const void *data, size_t length)
{
	const uint8_t *bytes = data;
	uint32_t sum = 0;

	for (; length > 1; length -= 2, bytes += 2)
		sum += (uint32_t)bytes[0] << 8 | bytes[1];
	if (length)
		sum += (uint32_t)bytes[0] << 8;
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return htons(~sum & 0xffff);
}

/* One less of its TTL, and the checksum as it then is (RFC 1624, equation 3). False: it may go no further. */
static int forwarded(uint8_t *packet, ssize_t length)
{
	uint32_t sum, old, new;

	if (length < 20 || packet[0] >> 4 != 4 || packet[8] <= 1)
		return 0;
	old = (uint32_t)packet[8] << 8 | packet[9];
	new = old - 0x100;
	sum = (~((uint32_t)packet[10] << 8 | packet[11]) & 0xffff) + (~old & 0xffff) + new;
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	packet[8]--;
	packet[10] = ~sum >> 8 & 0xff;
	packet[11] = ~sum & 0xff;
	return 1;
}

/* Nobody's subnet: network unreachable, as the proxy sends it (TTL 8, from its own address). Not about ICMP, nor later fragments. */
static void unreachable(int device, const uint8_t *packet, ssize_t length)
{
	struct {
		struct iphdr ip;
		struct icmphdr icmp;
		uint8_t quoted[60 + 8];
	} __attribute__((packed)) answer = {};
	ssize_t quoted = (packet[0] & 15) * 4 + 8, whole = sizeof(answer.ip) + sizeof(answer.icmp) + quoted;

	if (packet[0] >> 4 != 4 || quoted < 28 || length < quoted || packet[9] == IPPROTO_ICMP || packet[6] & 0x1f || packet[7])
		return;
	answer.ip.version = 4;
	answer.ip.ihl = 5;
	answer.ip.tot_len = htons(whole);
	answer.ip.ttl = 8;
	answer.ip.protocol = IPPROTO_ICMP;
	answer.ip.saddr = address;
	memcpy(&answer.ip.daddr, packet + 12, 4);
	answer.ip.check = checksum(&answer.ip, sizeof(answer.ip));
	answer.icmp.type = ICMP_DEST_UNREACH;
	answer.icmp.code = ICMP_NET_UNREACH;
	memcpy(answer.quoted, packet, quoted);
	answer.icmp.checksum = checksum(&answer.icmp, sizeof(answer.icmp) + quoted);
	if (write(device, &answer, whole) < 0)
		return; /* lost, as on any link */
}

/* What can't be sent or written (no route, too large, full) is a lost packet, as on any link. */

static int tun_to_udp(int device, int sock)
{
	ssize_t length = read(device, buffer, LARGEST);
	uint32_t target;

	if (length < 20)
		return 0;
	memcpy(&target, buffer + 16, 4);
	for (int number = 0; number < count; number++) {
		struct peer *peer = peers + number, first;

		if ((target & peer->mask) != peer->network)
			continue;
		if (forwarded(buffer, length))
			sendto(sock, buffer, length, MSG_DONTWAIT, (struct sockaddr *)&peer->node, sizeof(peer->node));
		/* Packets for one node come in bursts: it is looked at first the next time. */
		first = peers[0];
		peers[0] = *peer;
		*peer = first;
		return 1;
	}
	unreachable(device, buffer, length);
	return 1;
}

static int udp_to_tun(int sock, int device)
{
	ssize_t length = recv(sock, buffer, LARGEST, MSG_DONTWAIT);

	if (length < 20)
		return length >= 0;
	if (forwarded(buffer, length) && write(device, buffer, length) < 0)
		return 1;
	return 1;
}

static struct place *place_of(const uint8_t *mac)
{
	uint32_t hash = 0;

	for (int number = 0; number < ETH_ALEN; number++)
		hash = hash * 31 + mac[number];
	return places + (hash & (MACS - 1));
}

static void learn(const uint8_t *mac, int peer)
{
	struct place *place = place_of(mac);

	if (mac[0] & 1)
		return;
	memcpy(place->mac, mac, ETH_ALEN);
	place->peer = peer;
	place->known = 1;
}

/* Which peer has this MAC address: HERE for this node's own, -1 for nobody knows. */
static int behind(const uint8_t *mac)
{
	struct place *place = place_of(mac);

	return !(mac[0] & 1) && place->known && !memcmp(place->mac, mac, ETH_ALEN) ? place->peer : -1;
}

/* Fragmented by the network or not, as the frame's own packet allows. weaver has a socket for each. */
static void fragmentable(int sock, const uint8_t *frame)
{
	static int now = -1;
	int wanted = frame[12] == 8 && !frame[13] && frame[20] & 0x40 ? IP_PMTUDISC_DO : IP_PMTUDISC_DONT;

	if (wanted != now && !setsockopt(sock, IPPROTO_IP, IP_MTU_DISCOVER, &wanted, sizeof(wanted)))
		now = wanted;
}

static int tap_to_udp(int device, int sock)
{
	uint8_t *head = buffer, *frame = buffer + PACKET_BYTES + FRAME_BYTES;
	ssize_t length = recv(device, frame, LARGEST - PACKET_BYTES - FRAME_BYTES, MSG_DONTWAIT);
	int target;

	if (length < ETH_HLEN + 20)
		return length >= 0;
	learn(frame + ETH_ALEN, HERE);
	target = behind(frame);
	if (target == HERE)
		return 1;
	fragmentable(sock, frame);
	memcpy(head, own, NAME_BYTES);
	memcpy(head + PACKET_BYTES, own, NAME_BYTES);
	head[PACKET_BYTES + 2 * NAME_BYTES] = length >> 8;
	head[PACKET_BYTES + 2 * NAME_BYTES + 1] = length;
	for (int number = 0; number < count; number++) {
		if (target >= 0 && target != number)
			continue;
		memcpy(head + PACKET_BYTES + NAME_BYTES, peers[number].name, NAME_BYTES);
		sendto(sock, buffer, PACKET_BYTES + FRAME_BYTES + length, MSG_DONTWAIT, (struct sockaddr *)&peers[number].node,
		       sizeof(peers[number].node));
	}
	return 1;
}

static int udp_to_tap(int sock, int device)
{
	ssize_t length = recv(sock, buffer, LARGEST, MSG_DONTWAIT), size;
	uint8_t *at = buffer + PACKET_BYTES, *end = buffer + length;

	if (length < PACKET_BYTES)
		return length >= 0;
	for (; end - at >= FRAME_BYTES; at += FRAME_BYTES + size) {
		uint8_t *frame = at + FRAME_BYTES;
		int origin = -1;

		size = at[2 * NAME_BYTES] << 8 | at[2 * NAME_BYTES + 1];
		if (size > end - frame)
			break;
		for (int number = 0; number < count; number++)
			if (!memcmp(peers[number].name, at, NAME_BYTES))
				origin = number;
		if (origin < 0 || memcmp(own, at + NAME_BYTES, NAME_BYTES) || size < ETH_HLEN)
			continue;
		learn(frame + ETH_ALEN, origin);
		if (send(device, frame, size, MSG_DONTWAIT) < 0)
			continue;
	}
	return 1;
}

static int open_tun(const char *name)
{
	struct ifreq request = { .ifr_flags = IFF_TUN | IFF_NO_PI };
	int device = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);

	if (device < 0)
		die("/dev/net/tun");
	strncpy(request.ifr_name, name, IFNAMSIZ - 1);
	if (ioctl(device, TUNSETIFF, &request))
		die(name);
	return device;
}

static int open_tap(const char *name)
{
	struct sockaddr_ll where = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL), .sll_ifindex = if_nametoindex(name) };
	struct packet_mreq all = { .mr_ifindex = where.sll_ifindex, .mr_type = PACKET_MR_PROMISC };
	int one = 1, device = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);

	if (!where.sll_ifindex || device < 0)
		die(name);
	if (setsockopt(device, SOL_PACKET, PACKET_IGNORE_OUTGOING, &one, sizeof(one)) ||
	    setsockopt(device, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &all, sizeof(all)) ||
	    bind(device, (struct sockaddr *)&where, sizeof(where)))
		die(name);
	return device;
}

int main(int argc, char **argv)
{
	struct sockaddr_in local = { .sin_family = AF_INET };
	struct pollfd watched[2] = { { .events = POLLIN }, { .events = POLLIN } };
	int tun, space, device, sock;
	char line[2];

	if (argc < 8 || (strcmp(argv[3], "tun") && strcmp(argv[3], "tap"))) {
		fprintf(stderr, "usage: %s LAB NETNS tun|tap DEVICE ADDRESS|NAME LISTEN PORT PEER=NODE...\n", argv[0]);
		return 2;
	}
	prctl(PR_SET_NAME, NAME);
	if (!fgets(line, sizeof(line), stdin))
		return 0;
	tun = !strcmp(argv[3], "tun");
	if (tun)
		wants_address(argv[5], &address);
	else
		wants_name(argv[5], own);
	wants_address(argv[6], &local.sin_addr.s_addr);
	local.sin_port = htons(atoi(argv[7]));
	for (int number = 8; number < argc; number++)
		wants_peer(strdup(argv[number]), tun, atoi(argv[7]));
	signal(SIGINT, SIG_IGN);
	space = open(argv[2], O_RDONLY | O_CLOEXEC);
	if (space < 0 || setns(space, CLONE_NEWNET))
		die(argv[2]);
	close(space);
	device = tun ? open_tun(argv[4]) : open_tap(argv[4]);
	sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (sock < 0 || bind(sock, (struct sockaddr *)&local, sizeof(local)))
		die(argv[6]);
	printf("ready\n");
	fflush(stdout);
	space = open("/dev/null", O_RDWR);
	for (int standard = 0; standard < 3; standard++)
		dup2(space, standard);
	watched[0].fd = device;
	watched[1].fd = sock;
	for (;;) {
		int active;

		if (poll(watched, 2, -1) < 0 && errno != EINTR)
			return 1;
		if (watched[0].revents & (POLLERR | POLLNVAL)) {
			/* The device was deleted; a packet socket says so and then no more (ENETDOWN). */
			int error = 0;
			socklen_t size = sizeof(error);

			if (tun || getsockopt(device, SOL_SOCKET, SO_ERROR, &error, &size) || !if_nametoindex(argv[4]))
				return 0;
		}
		/* A try that finds nothing is cheaper than poll, which moves no packet: as long as one side has some, both are tried. */
		do
			active = tun ? tun_to_udp(device, sock) + udp_to_tun(sock, device) : tap_to_udp(device, sock) + udp_to_tap(sock, device);
		while (active);
	}
}
