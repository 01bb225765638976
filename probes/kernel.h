/*
 * Reading kernel memory without kernel headers: offsets of struct members come from the running kernel's BTF as -D constants
 * (OFF_struct_member). An address that is not there gives zero, never a fault.
 *
 * With NP_DIRECT the verifier knows the pointers' types (BTF-typed tracepoints, netfilter programs) and a member is one load
 * instruction. The loads are written as assembly because bcc would turn a dereference into a call. Without it each is a checked
 * copy, some thirty times slower, which every kernel with raw tracepoints takes.
 */
#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

#ifdef NP_DIRECT
#define NP_SIZE_u8 "u8"
#define NP_SIZE_u16 "u16"
#define NP_SIZE_u32 "u32"
#define NP_SIZE_u64 "u64"
#define READ(type, base, offset) ({ \
	u64 _value; \
	asm volatile("%0 = *(" NP_SIZE_##type " *)(%1 + %2)" : "=r"(_value) : "r"(base), "i"(offset)); \
	(type)_value; })
#else
#define READ(type, base, offset) ({ \
	type _value = 0; \
	bpf_probe_read_kernel(&_value, sizeof(_value), (const void *)((u64)(base) + (offset))); \
	_value; })
#endif

/*
 * A packet's bytes, whose address is a number to the verifier. bpf_rdonly_cast (6.2) makes of it a pointer to a type of two words
 * (NP_CAST), loads through which are plain instructions that give zero where nothing is. The loader puts the function's id in
 * place of NP_CAST_CALL. Without it each read is a checked copy.
 */
#ifdef NP_CAST
#define NP_CAST_CALL 0x4e5043
static u64 (*np_cast)(u64 address, u64 type) = (void *)NP_CAST_CALL;

static __always_inline int copy_bytes(void *to, u64 from, const u32 size)
{
#pragma unroll
	for (u32 at = 0; at < size; at += 16) {
		u64 words = np_cast(from + at, NP_CAST);

		*(u64 *)(to + at) = READ(u64, words, 0);
		if (at + 8 < size)
			*(u64 *)(to + at + 8) = READ(u64, words, 8);
	}
	return 0;
}

static __always_inline void mark_at(u64 address, u64 *nonce, u32 *sequence)
{
	u64 words = np_cast(address, NP_CAST);

	*nonce = READ(u64, words, 0);
	*sequence = READ(u32, words, 8);
}
#else
static __always_inline int copy_bytes(void *to, u64 from, const u32 size)
{
	return bpf_probe_read_kernel(to, size, (void *)from);
}

static __always_inline void mark_at(u64 address, u64 *nonce, u32 *sequence)
{
	struct { u64 nonce; u32 sequence; u32 none; } found = {};

	bpf_probe_read_kernel(&found, 12, (void *)address);
	*nonce = found.nonce;
	*sequence = found.sequence;
}
#endif

/* Where a packet's VLAN tag beside it is marked: a whole word since 6.2, a bit before. */
#ifdef NP_VLAN_WORD
#define VLAN_PRESENT(skb) READ(u32, skb, OFF_sk_buff_vlan_present)
#else
#define VLAN_PRESENT(skb) (READ(u8, skb, OFF_sk_buff_vlan_present) & MASK_sk_buff_vlan_present)
#endif

/*
 * A program's arguments: those of the tracepoint or function, and behind them what an fexit program is told of its result; with
 * NP_KPROBE the registers that hold them by the calling convention (struct pt_regs, struct user_pt_regs).
 */
#ifdef NP_KPROBE
struct context { u64 reg[34]; };
#if defined(__x86_64__)
#define NP_ARG_0 14
#define NP_ARG_1 13
#define NP_ARG_2 12
#define NP_RESULT 10
#define STACK(ctx) ((ctx)->reg[19])
#define STACK_OF_CALL(ctx) ((ctx)->reg[19] - 8) /* the return address is gone from the stack */
#elif defined(__aarch64__)
#define NP_ARG_0 0
#define NP_ARG_1 1
#define NP_ARG_2 2
#define NP_RESULT 0
#define STACK(ctx) ((ctx)->reg[31])
#define STACK_OF_CALL(ctx) ((ctx)->reg[31])
#endif
#define ARG(ctx, number) ((ctx)->reg[NP_ARG_##number])
#define RESULT(ctx, count) ((ctx)->reg[NP_RESULT])
#else
struct context { u64 args[6]; };
#define ARG(ctx, number) ((ctx)->args[number])
#define RESULT(ctx, count) ((ctx)->args[count])
#endif

static __always_inline u32 netns_of(u64 net)
{
	return net ? READ(u32, net, OFF_net_ns + OFF_ns_common_inum) : 0;
}

static __always_inline u64 device_net(u64 dev)
{
	return dev ? READ(u64, dev, OFF_net_device_nd_net) : 0;
}

static __always_inline u64 socket_net(u64 sk)
{
	return READ(u64, sk, OFF_sock_common_skc_net);
}
