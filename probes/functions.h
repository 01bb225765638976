/*
 * Programs on the kernel's own functions, by fentry and fexit or (NP_KPROBE) by kprobe and kretprobe: what stands in for netfilter
 * links where there are none. Functions are called for every packet of the machine in every namespace: who reads the marks leaves
 * out what nobody asked for. Which function each is for, and what the marks mean: netpath/ebpf/providers/functions.py.
 */
#define NF_ACCEPT 1
#define NF_LOCAL_OUT_HOOK 3

/* ip_protocol_deliver_rcu(net, skb, protocol) and its IPv6 twin: what LOCAL_IN let through, on its way to the transport. */
int np_deliver(struct context *ctx)
{
	u64 net = ARG(ctx, 0), skb = ARG(ctx, 1);
	struct np_seen seen = {};

	if (!look(&seen, skb))
		return 0;
	return report(&seen, network(skb), L_IP, READ(u64, skb, OFF_sk_buff_dev), net, NP_LOCAL_IN);
}

/* __ip_local_out(net, sk, skb) and its IPv6 twin: before LOCAL_OUT, and before the header has its length. */
int np_sent(struct context *ctx)
{
	u64 net = ARG(ctx, 0), skb = ARG(ctx, 2);
	struct np_seen seen = {};

	if (!look(&seen, skb))
		return 0;
	return report(&seen, network(skb), L_IP, 0, net, NP_LOCAL_OUT);
}

enum np_call { CALL_HOOK, CALL_CONNTRACK, CALL_NAT };

#ifdef NP_KPROBE
/* A kretprobe is not given the arguments: they are kept, for probes only, by the stack pointer of the call. */
struct np_frame { u64 skb, state; };
BPF_HASH(frames, u64, struct np_frame, 1024);
#endif

/* True for a probe at a hook of IP. */
static __always_inline int concerns(u64 skb, u64 state, u32 *sequence)
{
	u32 nought = 0;
	struct np_settings *set = settings.lookup(&nought);
	u8 family;

	if (!set || !set->stage_tail || !ends_with_probe(set, skb, sequence))
		return 0;
	family = READ(u8, state, OFF_nf_hook_state_pf);
	return family == 2 || family == 10;
}

static __always_inline void stamp_call(u64 skb, u64 state, u32 sequence, u32 call, u32 left)
{
	u64 time = bpf_ktime_get_ns();
	u32 nought = 0;
	struct np_settings *set = settings.lookup(&nought);
	u8 hook = READ(u8, state, OFF_nf_hook_state_hook);
	s64 priority;

	if (!set)
		return;
	if (call == CALL_HOOK)
		priority = left ? 2147483646 : -2147483647;
	else if (call == CALL_CONNTRACK)
		priority = -200;
	else
		priority = hook == 0 || hook == NF_LOCAL_OUT_HOOK ? -100 : 100;
	if (left && call != CALL_HOOK)
		priority += 1;
	write_stamp(set, skb, READ(u64, state, OFF_nf_hook_state_net), sequence, hook, READ(u8, state, OFF_nf_hook_state_pf), priority,
		    time);
}

static __always_inline int entered(struct context *ctx, u64 skb, u64 state, u32 call)
{
	u32 sequence = 0;

	if (!concerns(skb, state, &sequence))
		return 0;
#ifdef NP_KPROBE
	{
		struct np_frame frame = { .skb = skb, .state = state };
		u64 key = STACK(ctx);

		frames.update(&key, &frame);
	}
#endif
	stamp_call(skb, state, sequence, call, 0);
	return 0;
}

static __always_inline int left(struct context *ctx, u64 skb, u64 state, u64 result, u32 call)
{
	u32 sequence = 0;

#ifdef NP_KPROBE
	{
		u64 key = STACK_OF_CALL(ctx);
		struct np_frame *frame = frames.lookup(&key);

		if (!frame)
			return 0;
		skb = frame->skb;
		state = frame->state;
		frames.delete(&key);
	}
#endif
	/* What was dropped or taken is no longer there to be read. */
	if ((u32)result != NF_ACCEPT || !concerns(skb, state, &sequence))
		return 0;
	stamp_call(skb, state, sequence, call, 1);
	return 0;
}

/* nf_hook_slow(skb, state, entries, index): all that is registered at a hook. */
int np_hook_begin(struct context *ctx)
{
	return entered(ctx, ARG(ctx, 0), ARG(ctx, 1), CALL_HOOK);
}

int np_hook_end(struct context *ctx)
{
	return left(ctx, ARG(ctx, 0), ARG(ctx, 1), RESULT(ctx, 4), CALL_HOOK);
}

/* nf_conntrack_in(skb, state) */
int np_track_begin(struct context *ctx)
{
	return entered(ctx, ARG(ctx, 0), ARG(ctx, 1), CALL_CONNTRACK);
}

int np_track_end(struct context *ctx)
{
	return left(ctx, ARG(ctx, 0), ARG(ctx, 1), RESULT(ctx, 2), CALL_CONNTRACK);
}

/* nf_nat_inet_fn(priv, skb, state) */
int np_nat_begin(struct context *ctx)
{
	return entered(ctx, ARG(ctx, 1), ARG(ctx, 2), CALL_NAT);
}

int np_nat_end(struct context *ctx)
{
	return left(ctx, ARG(ctx, 1), ARG(ctx, 2), RESULT(ctx, 3), CALL_NAT);
}

static __always_inline int passed(u64 skb, u64 net, u8 hook)
{
	u32 nought = 0, sequence = 0;
	struct np_settings *set = settings.lookup(&nought);

	if (set && set->stage_tail && ends_with_probe(set, skb, &sequence))
		write_stamp(set, skb, net, sequence, hook, __builtin_bswap16(READ(u16, skb, OFF_sk_buff_protocol)) == 0x0800 ? 2 : 10, 0, bpf_ktime_get_ns());
	return 0;
}

/* ip_route_input_noref(skb, ...), ip6_route_input(skb): behind PREROUTING, whether anything is registered there or not. */
int np_received(struct context *ctx)
{
	u64 skb = ARG(ctx, 0);

	return passed(skb, device_net(READ(u64, skb, OFF_sk_buff_dev)), 0);
}

/* ip_forward(skb) and its IPv6 twin: before FORWARD. */
int np_forwarded(struct context *ctx)
{
	u64 skb = ARG(ctx, 0);

	return passed(skb, device_net(READ(u64, skb, OFF_sk_buff_dev)), 2);
}
