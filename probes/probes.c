/*
 * The probe programs. Each looks for the run's mark in a packet at one hook and, if it is there, writes one record with a copy
 * of the headers. They change nothing. What can't be written is counted.
 */
#include "event.h"
#include "kernel.h"

BPF_ARRAY(settings, struct np_settings, 1);
BPF_HASH(tunnels, u16, u8, 256);
BPF_PERCPU_ARRAY(counters, u64, 4); /* 0: records written, 1: records lost */
#ifdef NP_OWN_BUFFER
BPF_ARRAY(events, struct np_buffer, 1);
#else
BPF_RINGBUF_OUTPUT(events, 1);
#endif

#include "walk.h"

struct np_scratch {
	u64 busy;
	u8 front[NP_FRONT + NP_SPARE];
};

/* Two for each hook: a program may be interrupted by another run of itself, in a softirq, and by nothing more. */
BPF_PERCPU_ARRAY(scratch, struct np_scratch, 16);

static __always_inline void count(u32 which)
{
	u64 *value = counters.lookup(&which);

	if (value)
		(*value)++;
}

#ifdef NP_OWN_BUFFER
/*
 * A buffer of netpath's own: the kernel's takes a lock for each record. The loader puts its size less one in place of NP_MASK, and
 * how much of it may be unread in place of NP_LIMIT. Room is looked for first and taken then, by one atomic addition, so that
 * programs that run at once on all processors may take more than the limit: the buffer is that much larger (see
 * netpath/ebpf/ring.py). Behind it is room for the end of a record that begins on its last line.
 *
 * The compiler may be older than the instructions (5.12): the loader makes them of stores at these offsets.
 */
#define NP_MASK 0x4e504d53
#define NP_LIMIT 0x4e504c49
#define NP_FETCH_ADD "0x4e41"
#define NP_EXCHANGE "0x4e58"

static __always_inline void *take_lines(const u32 lines, u64 *state)
{
	u32 nought = 0;
	struct np_buffer *buffer = events.lookup(&nought);
	u64 mask, place = lines, offset;
	s64 limit;

	if (!buffer)
		return 0;
	asm volatile("%0 = %1" : "=r"(limit) : "i"(NP_LIMIT));
	/* Signed: between the two looks others may have written, and the reader may have read it, past the head that was seen here. */
	if ((s64)(*(volatile u64 *)&buffer->head + lines - *(volatile u64 *)&buffer->tail) * NP_LINE > limit)
		return 0;
	asm volatile("*(u64 *)(%1 + " NP_FETCH_ADD ") = %0" : "+r"(place) : "r"(&buffer->head) : "memory");
	*state = NP_STATE(place, lines);
	offset = place * NP_LINE;
	asm volatile("%0 = %1" : "=r"(mask) : "i"(NP_MASK));
	asm volatile("%0 &= %1" : "+r"(offset) : "r"(mask));
	return (u8 *)(buffer + 1) + offset;
}

/* On x86 stores are seen in their order; elsewhere an atomic exchange puts this one behind the others. */
static __always_inline void hand_over(u64 *at, u64 state)
{
#ifdef NP_ORDERED
	asm volatile("" ::: "memory");
	*(volatile u64 *)at = state;
#else
	asm volatile("*(u64 *)(%1 + " NP_EXCHANGE ") = %0" : "+r"(state) : "r"(at) : "memory");
#endif
}
#else
static __always_inline void *take_lines(const u32 lines, u64 *state)
{
	return events.ringbuf_reserve(lines * NP_LINE);
}

static __always_inline void hand_over(u64 *at, u64 state)
{
	events.ringbuf_submit(at, BPF_RB_NO_WAKEUP);
}
#endif

/* Reading the clock is the dearest part of a record: where many are alike, a part of them tells for all. */
static __always_inline u64 time_left(struct np_settings *set, u64 time)
{
	return time & set->silent ? 0 : bpf_ktime_get_ns();
}

/* What is known of a packet and its place before its headers are read. */
struct np_seen {
	u64 time, skb, location;
	struct np_settings *set;
	u32 netns, ifindex, length, reason, ahead, sequence;
	u16 protocol, type;
	u8 hook, marked;
};

static __always_inline void fill(struct np_event *event, const struct np_seen *seen, u32 got, s16 l3)
{
	event->time = seen->time;
	event->skb = seen->skb;
	event->location = seen->location;
	event->netns = seen->netns;
	event->ifindex = seen->ifindex;
	event->length = seen->length;
	event->reason = seen->reason;
	event->cpu = bpf_get_smp_processor_id();
	event->device_type = seen->type;
	event->protocol = seen->protocol;
	event->vlan_tci = event->vlan_protocol = 0;
	if (VLAN_PRESENT(seen->skb)) {
		event->vlan_tci = READ(u16, seen->skb, OFF_sk_buff_vlan_tci);
		event->vlan_protocol = __builtin_bswap16(READ(u16, seen->skb, OFF_sk_buff_vlan_proto));
	}
	event->captured = got;
	event->l3 = l3;
	event->ahead = seen->ahead;
	event->hook = seen->hook;
}

static __always_inline int write_event(const struct np_seen *seen, const u8 *front, u32 layer, u32 before, u64 got)
{
	struct np_found found = {};
	struct np_event *event;
	u64 state = 0;

	if (!np_walk(seen->set, front, before, got, layer, seen->protocol, &found))
		return 0;
	event = take_lines(sizeof(struct np_event) / NP_LINE, &state);
	if (!event) {
		count(1);
		return 0;
	}
	fill(event, seen, got < NP_CAPTURE ? got : NP_CAPTURE, layer == L_ETHERNET ? -1 : (s16)before);
	event->sequence = found.sequence;
	event->role = found.role;
	__builtin_memcpy(event->data, front, NP_CAPTURE);
	count(0);
	event->left = time_left(seen->set, seen->time);
	hand_over(&event->state, state);
	return 0;
}

/*
 * The record of a packet that is known by its end: its headers are copied, not read. Half the work of write_event, and as much
 * less for the packet to wait. `size`: of those that end with a line, the smallest that holds what lies before the mark.
 */
static __always_inline int write_marked(struct np_event *event, u64 state, const struct np_seen *seen, u64 start, u32 room, s16 l3,
					const u32 size)
{
	if (!event) {
		count(1);
		return 0;
	}
	fill(event, seen, room < size ? room : size, l3);
	event->sequence = seen->sequence;
	event->role = 0;
	/* Behind a packet's bytes there is always what the kernel keeps of it (skb_shared_info): a fixed size may be copied. */
	if (copy_bytes(event->data, start, size))
		event->captured = 0;
	count(0);
	event->left = time_left(seen->set, seen->time);
	hand_over(&event->state, state);
	return 0;
}

enum np_end { END_FOREIGN, END_MARKED, END_ELSEWHERE };

/*
 * What one look at a packet's end says: where all the run's packets end with the mark and as many bytes behind it, so does this
 * one, whatever its headers are. END_ELSEWHERE: it is not in the linear part, and only the headers can tell.
 */
static __always_inline int end_of(struct np_settings *set, u64 skb, u32 *sequence)
{
	u32 length = READ(u32, skb, OFF_sk_buff_len);
	u64 nonce;

	if (READ(u32, skb, OFF_sk_buff_data_len))
		return END_ELSEWHERE;
	if (length < set->tail)
		return END_FOREIGN;
	mark_at(READ(u64, skb, OFF_sk_buff_data) + length - set->tail, &nonce, sequence);
	*sequence = __builtin_bswap32(*sequence);
	if (__builtin_bswap64(nonce) != set->nonce || *sequence > set->last)
		return END_FOREIGN;
	return END_MARKED;
}

/* The first thing at every hook, before anything else is read: most packets are not the run's, and are let go here. */
static __always_inline int look(struct np_seen *seen, u64 skb)
{
	u32 nought = 0;
	struct np_settings *set = settings.lookup(&nought);
	int end = END_ELSEWHERE;

	if (!set || !set->nonce)
		return 0;
	if (set->tail) {
		end = end_of(set, skb, &seen->sequence);
		if (end == END_FOREIGN)
			return 0;
	}
	seen->time = bpf_ktime_get_ns();
	seen->skb = skb;
	seen->set = set;
	seen->marked = end == END_MARKED;
	return 1;
}

/*
 * Reports the packet whose header of layer `layer` is at `start` (an address), if it carries the mark. The link-layer header,
 * where it has been pulled already, is shown too.
 */
static __always_inline int report(struct np_seen *seen, u64 start, u32 layer, u64 dev, u64 net, u8 hook)
{
	u32 key = hook, linear, room, before = 0, front;
	struct np_event *event;
	struct np_scratch *own;
	u64 skb = seen->skb, head, data, got, state = 0;
	u32 zero;
	s16 l3;
	u16 mac;

	seen->hook = hook;
	seen->type = 0xffff;
	seen->ifindex = 0;
	if (dev) {
		seen->type = READ(u16, dev, OFF_net_device_type);
		seen->ifindex = READ(u32, dev, OFF_net_device_ifindex);
	}
	seen->netns = netns_of(net);
	seen->length = READ(u32, skb, OFF_sk_buff_len);
	seen->protocol = __builtin_bswap16(READ(u16, skb, OFF_sk_buff_protocol));
	linear = seen->length - READ(u32, skb, OFF_sk_buff_data_len);
	head = READ(u64, skb, OFF_sk_buff_head);
	data = READ(u64, skb, OFF_sk_buff_data);
	mac = READ(u16, skb, OFF_sk_buff_mac_header);
	if (layer != L_ETHERNET && mac != 0xffff && seen->type != 0xfffe && start - (head + mac) <= 64)
		before = start - (head + mac);
	start -= before;
	/* What is before data (a header already pulled) is there too. */
	room = linear + (u32)(data - start);
	if (room > 65535 || room < 8)
		return 0;
	seen->ahead = data > start ? data - start : 0;
	if (seen->marked) {
		l3 = layer == L_ETHERNET ? -1 : (s16)before;
		front = room - seen->set->tail;
		if (front <= NP_SHORT) {
			event = take_lines(2, &state);
			return write_marked(event, state, seen, start, room, l3, NP_SHORT);
		}
		if (front <= NP_MIDDLE) {
			event = take_lines(3, &state);
			return write_marked(event, state, seen, start, room, l3, NP_MIDDLE);
		}
		event = take_lines(4, &state);
		return write_marked(event, state, seen, start, room, l3, NP_CAPTURE);
	}
	zero = seen->set->zero; /* see walk.h: what differs from path to path must not look known */
	before += zero;
	layer += zero;
	own = scratch.lookup(&key);
	if (own && own->busy) {
		key += 8;
		own = scratch.lookup(&key);
	}
	if (!own || own->busy)
		return 0;
	got = room < NP_FRONT ? room : NP_FRONT - 1;
	/* Says to the verifier, in the very register, what the line before says to the compiler. */
	asm volatile("%0 &= 255" : "+r"(got));
	/* From here on an interrupting run must take the other buffer. */
	own->busy = 1;
	if (bpf_probe_read_kernel(own->front, got, (void *)start)) {
		own->busy = 0;
		return 0;
	}
	seen->ahead += zero;
	seen->ifindex += zero;
	seen->netns += zero;
	seen->type += zero;
	seen->protocol += zero;
	seen->length += zero;
	got += zero;
	got &= 255;
	write_event(seen, own->front, layer, before, got);
	own->busy = 0;
	return 0;
}

static __always_inline u64 network(u64 skb)
{
	return READ(u64, skb, OFF_sk_buff_head) + READ(u16, skb, OFF_sk_buff_network_header);
}

/* net_dev_start_xmit(skb, dev): after the queueing discipline, where a capture sees it. data is at the link-layer header. */
int np_tx(struct context *ctx)
{
	u64 skb = ARG(ctx, 0), dev = ARG(ctx, 1);
	struct np_seen seen = {};
	u16 type;

	if (!look(&seen, skb))
		return 0;
	type = READ(u16, dev, OFF_net_device_type);
	return report(&seen, READ(u64, skb, OFF_sk_buff_data), type == 1 || type == 772 ? L_ETHERNET : L_IP, dev, device_net(dev), NP_TX);
}

/* netif_receive_skb(skb): data is at the network header, or at a VLAN tag; network_header may be stale. */
int np_rx(struct context *ctx)
{
	u64 skb = ARG(ctx, 0), dev;
	struct np_seen seen = {};

	if (!look(&seen, skb))
		return 0;
	dev = READ(u64, skb, OFF_sk_buff_dev);
	return report(&seen, READ(u64, skb, OFF_sk_buff_data), L_ETHERTYPE, dev, device_net(dev), NP_RX);
}

#ifdef NP_REASONS
#define DROP_REASON(ctx) ((u32)ARG(ctx, 2))
#else
#define DROP_REASON(ctx) 0 /* before 5.17 the tracepoint has two arguments, and a program that reads a third is refused */
#endif

/* kfree_skb(skb, location, reason): data may be anywhere, the network header is where it was last set. */
int np_drop(struct context *ctx)
{
	u64 skb = ARG(ctx, 0), dev, net, sk;
	struct np_seen seen = {};

	if (!look(&seen, skb))
		return 0;
	dev = READ(u64, skb, OFF_sk_buff_dev);
	net = device_net(dev);
	if (!netns_of(net)) {
		/* A packet in a socket's queue has other things where the device was. */
		sk = READ(u64, skb, OFF_sk_buff_sk);
		net = sk ? socket_net(sk) : 0;
		dev = 0;
	}
	seen.reason = DROP_REASON(ctx);
	seen.location = ARG(ctx, 1);
	return report(&seen, network(skb), L_IP, dev, net, NP_DROP);
}

/* sk_data_ready(sk): the packet that made the socket readable is the last of its queue. */
int np_socket(struct context *ctx)
{
	u64 sk = ARG(ctx, 0), skb;
	struct np_seen seen = {};

	/* A capture gets a copy, wherever it listens; that is no arrival. */
	if (READ(u16, sk, OFF_sock_common_skc_family) == 17)
		return 0;
	if (!READ(u32, sk, OFF_sock_sk_receive_queue + OFF_sk_buff_head_qlen))
		return 0;
	skb = READ(u64, sk, OFF_sock_sk_receive_queue + OFF_sk_buff_prev);
	if (!skb || !look(&seen, skb))
		return 0;
	return report(&seen, network(skb), L_IP, 0, socket_net(sk), NP_SOCKET);
}

/* skb_copy_datagram_iovec(skb, len): a process reads a packet, from a TUN device among others. */
int np_tun_read(struct context *ctx)
{
	u64 skb = ARG(ctx, 0), dev, net;
	struct np_seen seen = {};

	if (!look(&seen, skb))
		return 0;
	dev = READ(u64, skb, OFF_sk_buff_dev);
	net = device_net(dev);
	if (!netns_of(net) || READ(u16, dev, OFF_net_device_type) != 0xfffe)
		return 0;
	return report(&seen, READ(u64, skb, OFF_sk_buff_data), L_IP, dev, net, NP_TUN_READ);
}

struct netfilter { u64 state; u64 skb; };

/* `device` is a constant: which member of nf_hook_state names the device. */
static __always_inline int at_hook(struct netfilter *ctx, u8 hook, const u32 device)
{
	u64 skb = ctx->skb, state;
	struct np_seen seen = {};

	if (look(&seen, skb)) {
		state = ctx->state;
		report(&seen, network(skb), L_IP, READ(u64, state, device), READ(u64, state, OFF_nf_hook_state_net), hook);
	}
	return 1; /* NF_ACCEPT */
}

int np_local_in(struct netfilter *ctx)
{
	return at_hook(ctx, NP_LOCAL_IN, OFF_nf_hook_state_in);
}

int np_local_out(struct netfilter *ctx)
{
	return at_hook(ctx, NP_LOCAL_OUT, OFF_nf_hook_state_out);
}

/* True for a probe by what its packet ends with: the mark, or the whole of a SYN. The end must be in the linear part. */
static __always_inline int ends_with_probe(struct np_settings *set, u64 skb, u32 *sequence)
{
	u32 length = READ(u32, skb, OFF_sk_buff_len), distance;
	u8 end[16];
	u64 at, nonce;

	if (READ(u32, skb, OFF_sk_buff_data_len) || length < set->stage_tail)
		return 0;
	at = READ(u64, skb, OFF_sk_buff_data) + length - set->stage_tail;
	if (!set->tcp_span) {
		mark_at(at, &nonce, sequence);
		*sequence = __builtin_bswap32(*sequence);
		return __builtin_bswap64(nonce) == set->nonce && *sequence <= set->last;
	}
	copy_bytes(end, at, sizeof(end));
	distance = be32(end + 4) - set->tcp_base;
	if ((end[13] & 0x12) != 0x02 || distance >= set->tcp_span || distance % set->tcp_stride)
		return 0;
	*sequence = distance / set->tcp_stride;
	return 1;
}

static __always_inline void write_stamp(struct np_settings *set, u64 skb, u64 net, u32 sequence, u8 hook, u8 family, u64 priority,
					u64 time)
{
	u64 state = 0;
	struct np_stamp *stamp = take_lines(1, &state);

	if (!stamp) {
		count(1);
		return;
	}
	stamp->time = time;
	stamp->skb = skb;
	stamp->netns = netns_of(net);
	stamp->sequence = sequence;
	stamp->priority = priority;
	stamp->hook = hook;
	stamp->family = family;
	stamp->spare = 0;
	count(0);
	stamp->left = time_left(set, time);
	hand_over(&stamp->state, state);
}

/*
 * One place among what is registered at a netfilter hook. The kernel does not tell a program at which priority it runs: the
 * loader writes it over NP_PRIORITY, and loads the program once for each.
 */
#define NP_PRIORITY 0x4e505052

int np_stamp(struct netfilter *ctx)
{
	u64 skb = ctx->skb, state = ctx->state, time;
	u32 nought = 0, sequence = 0;
	struct np_settings *set = settings.lookup(&nought);
	u64 priority;

	if (!set || !set->stage_tail || !ends_with_probe(set, skb, &sequence))
		return 1; /* NF_ACCEPT */
	time = bpf_ktime_get_ns();
	asm volatile("%0 = %1" : "=r"(priority) : "i"(NP_PRIORITY));
	write_stamp(set, skb, READ(u64, state, OFF_nf_hook_state_net), sequence, READ(u8, state, OFF_nf_hook_state_hook),
		    READ(u8, state, OFF_nf_hook_state_pf), priority, time);
	return 1;
}

/* qdisc_enqueue(qdisc, queue, skb): a queueing discipline has taken the packet; np_tx sees it when it comes out and is sent. */
int np_queued(struct context *ctx)
{
	u64 skb = ARG(ctx, 2);
	u32 nought = 0, sequence = 0;
	struct np_settings *set = settings.lookup(&nought);

	if (set && set->stage_tail && ends_with_probe(set, skb, &sequence))
		write_stamp(set, skb, device_net(READ(u64, skb, OFF_sk_buff_dev)), sequence, NP_QUEUED, 0, 0, bpf_ktime_get_ns());
	return 0;
}

#include "functions.h"
