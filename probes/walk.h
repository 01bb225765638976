/*
 * Finds the probe's mark in a packet, through any stack of Ethernet, VLAN, IPv4 with options, IPv6 with extension headers, UDP,
 * TCP, ICMP, ICMPv6 (and the packets that ICMP errors quote), VXLAN, IPIP and IP in UDP. One header a round, a bounded number
 * of rounds, every byte read with a check.
 */
#define NP_ROUNDS 14

enum np_layer { L_ETHERNET, L_ETHERTYPE, L_IP, L_PROTOCOL, L_PAYLOAD };

struct np_found {
	u32 sequence;
	u8 role;
};

static __always_inline int np_mark(struct np_settings *set, u64 at, u32 room, struct np_found *found)
{
	struct { u64 nonce; u32 sequence; } __attribute__((packed)) mark;

	if (room < sizeof(mark) || bpf_probe_read_kernel(&mark, sizeof(mark), (void *)at))
		return 0;
	if (mark.nonce != set->nonce)
		return 0;
	found->sequence = __builtin_bswap32(mark.sequence);
	return found->sequence <= set->last;
}

static __always_inline int np_syn(struct np_settings *set, u64 at, u32 room, int quoted, struct np_found *found)
{
	u8 tcp[14] = {};
	u32 distance, number;

	if (!set->tcp_span || room < 8)
		return 0;
	/* What an ICMP error quotes may end after eight bytes. */
	if (bpf_probe_read_kernel(tcp, 8, (void *)at) || (room >= 14 && bpf_probe_read_kernel(tcp + 8, 6, (void *)(at + 8))))
		return 0;
	if (quoted || (tcp[13] & 0x12) == 0x02)
		number = (u32)tcp[4] << 24 | (u32)tcp[5] << 16 | (u32)tcp[6] << 8 | tcp[7];
	else if (tcp[13] & 0x10) {
		number = ((u32)tcp[8] << 24 | (u32)tcp[9] << 16 | (u32)tcp[10] << 8 | tcp[11]) - 1;
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
 * Walks from `at` (an address; `room` bytes follow it in the linear part), starting at `layer`. True when a mark was found.
 *
 * set->zero is a zero that the verifier takes for any number. Added to what a round hands to the next, it keeps the verifier from
 * following each known combination of layers on its own: all paths look the same at the head of the loop, and checking a program
 * takes a fraction of the time. `room` is computed afresh from two addresses for the same reason.
 */
static __always_inline int np_walk(struct np_settings *set, u64 at, u32 room, u32 layer, u32 number, struct np_found *found)
{
	u32 zero = set->zero, quoted = zero;
	u64 end = at + room;

	layer += zero;
	number += zero;
	found->role = NP_PROBE;
	for (int round = 0; round < NP_ROUNDS; round++) {
		u8 head[8] = {};
		u32 length = 0;

		if ((s64)(end - at) < 8)
			return 0;
		room = (u32)(end - at) + zero;
		if (room < 8 || bpf_probe_read_kernel(head, 8, (void *)at))
			return 0;
		if (layer == L_ETHERNET) {
			u8 type[2] = {};

			if (room < 14 || bpf_probe_read_kernel(type, 2, (void *)(at + 12)))
				return 0;
			number = (u32)type[0] << 8 | type[1];
			layer = L_ETHERTYPE;
			length = 14;
		} else if (layer == L_ETHERTYPE) {
			if (number == 0x8100 || number == 0x88a8) {
				number = (u32)head[2] << 8 | head[3];
				length = 4;
			} else if (number == 0x0800 || number == 0x86dd) {
				layer = L_IP;
			} else
				return 0;
		} else if (layer == L_IP) {
			u8 next = 0;

			if (head[0] >> 4 == 4) {
				if ((head[6] & 0x1f) || head[7])
					return 0; /* a later fragment: no transport header */
				length = (head[0] & 15) * 4;
				if (length < 20 || bpf_probe_read_kernel(&next, 1, (void *)(at + 9)))
					return 0;
				number = next;
			} else if (head[0] >> 4 == 6) {
				length = 40;
				number = head[6];
			} else
				return 0;
			layer = L_PROTOCOL;
		} else if (number == 17) {
			u16 port = (u16)head[2] << 8 | head[3];
			u8 *kind = tunnels.lookup(&port);

			if (!kind)
				goto payload;
			if (np_mark(set, at + 8, room - 8, found))
				goto found_it; /* a probe to a tunnel's own port */
			layer = *kind == 1 ? L_ETHERNET : L_IP;
			length = *kind == 1 ? 16 : 8;
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
		at += length;
		layer += zero;
		number += zero;
		quoted += zero;
	}
	return 0;
	/* What ends the walk stands behind the loop: the verifier follows it once, not once for each round. */
segment:
	if (!np_syn(set, at, (u32)(end - at), quoted, found))
		return 0;
	goto found_it;
payload:
	if (!np_mark(set, at + 8, (u32)(end - at) - 8, found))
		return 0;
found_it:
	if (quoted)
		found->role = NP_ERROR;
	return 1;
}
