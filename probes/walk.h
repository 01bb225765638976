/*
 * Finds the probe's mark in a packet, through any stack of Ethernet, VLAN, IPv4 with options, IPv6 with extension headers, UDP,
 * TCP, ICMP, ICMPv6 (and the packets that ICMP errors quote), VXLAN, IPIP, IP in UDP and Weave's sleeve. One header a round, a bounded number
 * of rounds. The front of the packet has been copied out beforehand: one copy costs less than a checked read for each field.
 */
#define NP_ROUNDS 14
#define NP_FRONT 256  /* bytes of a packet that are looked at */
#define NP_SPARE 64   /* what follows them: a header may be read without a check for each of its bytes */

enum np_layer { L_ETHERNET, L_ETHERTYPE, L_IP, L_PROTOCOL };

struct np_found {
	u32 sequence;
	u8 role;
};

static __always_inline u32 be16(const u8 *at)
{
	return (u32)at[0] << 8 | at[1];
}

static __always_inline u32 be32(const u8 *at)
{
	return be16(at) << 16 | be16(at + 2);
}

/* The mark at the head of a payload of `room` bytes. */
static __always_inline int np_mark(struct np_settings *set, const u8 *at, u32 room, struct np_found *found)
{
	if (room < 12 || ((u64)be32(at) << 32 | be32(at + 4)) != set->nonce)
		return 0;
	found->sequence = be32(at + 8);
	return found->sequence <= set->last;
}

/* A SYN by its number, an answer to one by its acknowledgement. */
static __always_inline int np_syn(struct np_settings *set, const u8 *tcp, u32 room, int quoted, struct np_found *found)
{
	u32 distance, number;

	if (!set->tcp_span || room < 8)
		return 0;
	/* What an ICMP error quotes may end after eight bytes. */
	if (quoted || (room >= 14 && (tcp[13] & 0x12) == 0x02))
		number = be32(tcp + 4);
	else if (room >= 14 && (tcp[13] & 0x10)) {
		number = be32(tcp + 8) - 1;
		found->role = NP_ANSWER;
	} else
		return 0;
	distance = number - set->tcp_base;
	if (distance >= set->tcp_span || distance % set->tcp_stride)
		return 0;
	found->sequence = distance / set->tcp_stride;
	return 1;
}

/*
 * Walks the front of a packet from byte `at` up to `end`, starting at `layer`. True when a mark was found.
 *
 * set->zero is a zero that the verifier takes for any number. Added to what a round hands to the next, it keeps the verifier from
 * following each known combination of layers on its own: all paths look the same at the head of the loop, and checking a program
 * takes a fraction of the time.
 */
static __always_inline int np_walk(struct np_settings *set, const u8 *front, u32 at, u32 end, u32 layer, u32 number,
				   struct np_found *found)
{
	u32 zero = set->zero, quoted = zero, room;

	at += zero;
	layer += zero;
	number += zero;
	found->role = NP_PROBE;
	for (int round = 0; round < NP_ROUNDS; round++) {
		const u8 *head;
		u32 length = 0;

		/* The bound must be seen on the register that is added to the address. */
		asm volatile("" : "+r"(at));
		if (at >= NP_FRONT)
			return 0;
		head = front + at;
		room = end - at;
		if (end < at || room < 8)
			return 0;
		if (layer == L_ETHERNET) {
			if (room < 14)
				return 0;
			number = be16(head + 12);
			layer = L_ETHERTYPE;
			length = 14;
		} else if (layer == L_ETHERTYPE) {
			if (number == 0x8100 || number == 0x88a8) {
				number = be16(head + 2);
				length = 4;
			} else if (number == 0x0800 || number == 0x86dd) {
				layer = L_IP;
			} else
				return 0;
		} else if (layer == L_IP) {
			if (head[0] >> 4 == 4 && room >= 20) {
				if ((head[6] & 0x1f) || head[7])
					return 0; /* a later fragment: no transport header */
				length = (head[0] & 15) * 4;
				if (length < 20)
					return 0;
				number = head[9];
			} else if (head[0] >> 4 == 6) {
				length = 40;
				number = head[6];
			} else
				return 0;
			layer = L_PROTOCOL;
		} else if (number == 17) {
			u16 port = be16(head + 2);
			u8 *kind;

			kind = tunnels.lookup(&port);
			if (!kind)
				goto payload;
			if (np_mark(set, head + 8, room - 8, found))
				goto found_it; /* a probe to a tunnel's own port */
			/* 1: VXLAN; 2: the bare packet; 3: a sleeve's frame, behind its two headers of 20 bytes */
			layer = *kind == 2 ? L_IP : L_ETHERNET;
			length = *kind == 1 ? 16 : *kind == 2 ? 8 : 28;
		} else if (number == 6) {
			goto segment;
		} else if (number == 1 || number == 58) {
			u8 type = head[0];

			if (number == 1 ? type == 8 || type == 0 : type == 128 || type == 129) {
				if (type == 0 || type == 129)
					found->role = NP_ANSWER;
				goto payload;
			}
			if (quoted || (number == 1 ? type != 3 && type != 11 && type != 12 && type != 5 : type < 1 || type > 4))
				return 0;
			quoted = 1;
			layer = L_IP;
			length = 8;
		} else if (number == 4 || number == 41) {
			layer = L_IP;
		} else if (number == 0 || number == 43 || number == 60) {
			number = head[0];
			length = ((u32)head[1] + 1) * 8;
		} else if (number == 44) {
			if (head[2] || head[3] & 0xf8)
				return 0;
			number = head[0];
			length = 8;
		} else if (number == 51) {
			number = head[0];
			length = ((u32)head[1] + 2) * 4;
		} else
			return 0;
		at += length + zero;
		layer += zero;
		number += zero;
		quoted += zero;
	}
	return 0;
	/* What ends the walk stands behind the loop: the verifier follows it once, not once for each round. */
segment:
	if (!np_syn(set, front + at, end - at, quoted, found))
		return 0;
	goto found_it;
payload:
	if (!np_mark(set, front + at + 8, end - at - 8, found))
		return 0;
found_it:
	if (quoted)
		found->role = NP_ERROR;
	return 1;
}
