/*
 * Reading kernel memory without kernel headers: offsets of struct members come from the running kernel's BTF as -D constants
 * (OFF_struct_member). READ is a checked copy: an address that is not there gives zero, never a fault.
 */
#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

#define READ(type, base, offset) ({ type _value = 0; bpf_probe_read_kernel(&_value, sizeof(_value), (const void *)((u64)(base) + (offset))); _value; })

static __always_inline u32 netns_of(u64 net)
{
	return net ? READ(u32, net, OFF_net_ns + OFF_ns_common_inum) : 0;
}

static __always_inline u64 device_net(u64 dev)
{
	return READ(u64, dev, OFF_net_device_nd_net);
}

static __always_inline u64 socket_net(u64 sk)
{
	return READ(u64, sk, OFF_sock_common_skc_net);
}
