/*
 * The probe programs. Each looks for the run's mark in a packet at one hook and, if it is there, writes one record with a copy
 * of the headers. They change nothing. What can't be written is counted.
 */
#include "event.h"
#include "kernel.h"

BPF_ARRAY(settings, struct np_settings, 1);
BPF_HASH(tunnels, u16, u8, 256);
BPF_PERCPU_ARRAY(counters, u64, 4); /* 0: records written, 1: records lost, 2: packets looked at */
BPF_RINGBUF_OUTPUT(events, 1);

#include "walk.h"

struct context { u64 args[6]; };

static __always_inline void count(u32 which)
{
	u64 *value = counters.lookup(&which);

	if (value)
		(*value)++;
}

static __always_inline int report(u64 skb, u64 start, u32 layer, u64 dev, u64 net, u8 hook, u64 now, u32 reason, u64 location)
{
	struct np_found found = {};
	struct np_settings *set;
	struct np_event *event;
	u32 zero = 0, length, linear, room, captured;
	u64 head, data;
	u16 mac, protocol;
	s64 before;

	set = settings.lookup(&zero);
	if (!set || !set->nonce)
		return 0;
	dev += set->zero; /* see walk.h */
	length = READ(u32, skb, OFF_sk_buff_len);
	head = READ(u64, skb, OFF_sk_buff_head);
	data = READ(u64, skb, OFF_sk_buff_data);
	linear = length - READ(u32, skb, OFF_sk_buff_data_len);
	protocol = __builtin_bswap16(READ(u16, skb, OFF_sk_buff_protocol));
	/* What is before data (a header already pulled) is there too. */
	room = linear + (u32)(data - start);
	if (room > 65535)
		return 0;
	if (!np_walk(set, start, room, layer, protocol, &found))
		return 0;
	event = events.ringbuf_reserve(sizeof(struct np_event));
	if (!event) {
		count(1);
		return 0;
	}
	event->time = now;
	event->skb = skb;
	event->location = location;
	event->sequence = found.sequence;
	event->role = found.role;
	event->length = length;
	event->reason = reason;
	event->cpu = bpf_get_smp_processor_id();
	event->protocol = protocol;
	event->vlan_tci = event->vlan_protocol = 0;
	if (READ(u32, skb, OFF_sk_buff_vlan_present) & MASK_sk_buff_vlan_present) {
		event->vlan_tci = READ(u16, skb, OFF_sk_buff_vlan_tci);
		event->vlan_protocol = __builtin_bswap16(READ(u16, skb, OFF_sk_buff_vlan_proto));
	}
	event->hook = hook;
	event->netns = netns_of(net);
	event->ifindex = 0;
	event->device_type = 0xffff;
	__builtin_memset(event->name, 0, NP_NAME);
	if (dev) {
		event->ifindex = READ(u32, dev, OFF_net_device_ifindex);
		event->device_type = READ(u16, dev, OFF_net_device_type);
		bpf_probe_read_kernel(event->name, NP_NAME, (void *)(dev + OFF_net_device_name));
	}
	/* The link-layer header, where it has been pulled already, is shown too. */
	mac = READ(u16, skb, OFF_sk_buff_mac_header);
	before = (s64)(start - (head + mac));
	event->l3 = layer == L_ETHERNET ? -1 : 0;
	if (layer != L_ETHERNET && mac != 0xffff && before > 0 && before <= 64 && event->device_type != 0xfffe) {
		start -= before;
		room += before;
		event->l3 = before;
	}
	event->ahead = data > start ? data - start : 0;
	captured = room < NP_CAPTURE ? room : NP_CAPTURE;
	/* The verifier must see the bound on the very register: the compiler would check one copy and pass another. */
	asm volatile("" : "+r"(captured));
	captured &= 0xff;
	if (captured > NP_CAPTURE || bpf_probe_read_kernel(event->data, captured, (void *)start))
		captured = 0;
	event->captured = captured;
	count(0);
	event->left = bpf_ktime_get_ns();
	events.ringbuf_submit(event, BPF_RB_NO_WAKEUP);
	return 0;
}

static __always_inline u64 network(u64 skb)
{
	return READ(u64, skb, OFF_sk_buff_head) + READ(u16, skb, OFF_sk_buff_network_header);
}

/* net_dev_start_xmit(skb, dev): after the queueing discipline, where a capture sees it. data is at the link-layer header. */
int np_tx(struct context *ctx)
{
	u64 now = bpf_ktime_get_ns(), skb = ctx->args[0], dev = ctx->args[1];
	u16 type = READ(u16, dev, OFF_net_device_type);
	u64 data = READ(u64, skb, OFF_sk_buff_data);

	return report(skb, data, type == 1 || type == 772 ? L_ETHERNET : L_IP, dev, device_net(dev), NP_TX, now, 0, 0);
}

/* netif_receive_skb(skb): data is at the network header, or at a VLAN tag; network_header may be stale. */
int np_rx(struct context *ctx)
{
	u64 now = bpf_ktime_get_ns(), skb = ctx->args[0];
	u64 dev = READ(u64, skb, OFF_sk_buff_dev);

	return report(skb, READ(u64, skb, OFF_sk_buff_data), L_ETHERTYPE, dev, device_net(dev), NP_RX, now, 0, 0);
}

/* kfree_skb(skb, location, reason): data may be anywhere, the network header is where it was last set. */
int np_drop(struct context *ctx)
{
	u64 now = bpf_ktime_get_ns(), skb = ctx->args[0];
	u64 dev = READ(u64, skb, OFF_sk_buff_dev), net = device_net(dev), sk;

	if (!netns_of(net)) {
		/* A packet in a socket's queue has other things where the device was. */
		sk = READ(u64, skb, OFF_sk_buff_sk);
		net = sk ? socket_net(sk) : 0;
		dev = 0;
	}
	return report(skb, network(skb), L_IP, dev, net, NP_DROP, now, (u32)ctx->args[2], ctx->args[1]);
}

/* sk_data_ready(sk): the packet that made the socket readable is the last of its queue. */
int np_socket(struct context *ctx)
{
	u64 now = bpf_ktime_get_ns(), sk = ctx->args[0];
	u64 queue = sk + OFF_sock_sk_receive_queue;
	u64 skb = READ(u64, queue, OFF_sk_buff_prev);

	if (!skb || skb == queue)
		return 0;
	return report(skb, network(skb), L_IP, 0, socket_net(sk), NP_SOCKET, now, 0, 0);
}

/* skb_copy_datagram_iovec(skb, len): a process reads a packet, from a TUN device among others. */
int np_tun_read(struct context *ctx)
{
	u64 now = bpf_ktime_get_ns(), skb = ctx->args[0];
	u64 dev = READ(u64, skb, OFF_sk_buff_dev), net = device_net(dev);

	if (!netns_of(net) || READ(u16, dev, OFF_net_device_type) != 0xfffe)
		return 0;
	return report(skb, READ(u64, skb, OFF_sk_buff_data), L_IP, dev, net, NP_TUN_READ, now, 0, 0);
}

struct netfilter { u64 state; u64 skb; };

static __always_inline int at_hook(struct netfilter *ctx, u8 hook, u32 device)
{
	u64 now = bpf_ktime_get_ns(), skb = ctx->skb, state = ctx->state;
	u64 dev = READ(u64, state, device);

	report(skb, network(skb), L_IP, dev, READ(u64, state, OFF_nf_hook_state_net), hook, now, 0, 0);
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
