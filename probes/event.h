/*
 * What every probe program writes, and what the settings are. netpath/ebpf/records.py reads the structs below out of this
 * file, so they are declared here and nowhere else: fixed-width types, one member a line, no padding left to the compiler.
 */
#define NP_CAPTURE 176
#define NP_SHORT 48   /* bytes of a packet in a record of two lines, and in one of three */
#define NP_MIDDLE 112

enum np_hook { NP_TX = 1, NP_RX = 2, NP_DROP = 3, NP_SOCKET = 4, NP_LOCAL_IN = 5, NP_LOCAL_OUT = 6, NP_TUN_READ = 7 };
enum np_role { NP_PROBE = 1, NP_ANSWER = 2, NP_ERROR = 3 };

/*
 * The buffer: lines of 64 bytes. A record takes whole lines, and begins with its place and their number (NP_STATE), which are
 * written last: by them a reader knows that it is whole. Records of one line are stamps.
 */
#define NP_LINE 64
#define NP_STATE(place, lines) ((place) << 8 | (lines))

struct np_buffer {
	u64 head;          /* lines ever given to records */
	u8 spare[56];
	u64 tail;          /* of them, those that have been read */
	u8 apart[56];      /* the lines follow */
};

struct np_event {
	u64 state;
	u64 time;          /* bpf_ktime_get_ns() on entry */
	u64 left;          /* the same when the record was complete: what the event cost, but for entry and exit; 0: see `silent` below */
	u64 skb;
	u64 location;      /* drops: the instruction that freed it */
	u32 netns;         /* inode */
	u32 ifindex;
	u32 sequence;
	u32 length;        /* skb->len */
	u32 reason;        /* drops: enum skb_drop_reason */
	u32 cpu;
	u16 device_type;   /* ARPHRD_* */
	u16 protocol;      /* skb->protocol, host byte order */
	u16 vlan_tci;      /* the VLAN tag that the kernel carries beside the packet, if it does */
	u16 vlan_protocol; /* that tag's EtherType; 0: no such tag */
	u16 captured;      /* bytes of data[] that are valid */
	s16 l3;            /* where the outermost network header starts in data[] */
	u16 ahead;         /* bytes of data[] that skb->len does not count (a link-layer header already pulled) */
	u8 hook;
	u8 role;           /* 0: known by its end alone, its headers say what it is */
	u8 data[NP_CAPTURE];
};

#define NP_QUEUED 255 /* np_stamp's hook where a queueing discipline has taken the packet; no netfilter hook has this number */

/* A packet that carries the mark, at one place of a netfilter hook: what a stage is measured with. Much smaller than an event. */
struct np_stamp {
	u64 state;
	u64 time;          /* bpf_ktime_get_ns() once the mark was found */
	u64 left;          /* as in struct np_event */
	u64 skb;
	u32 netns;         /* inode */
	u32 sequence;
	s32 priority;      /* where among the things that are registered at the hook */
	u8 hook;           /* enum nf_inet_hooks, or NP_QUEUED */
	u8 family;         /* NFPROTO_* */
	u16 spare;
	u8 unused[16];
};

struct np_settings {
	u64 nonce;
	u32 tcp_base;
	u32 tcp_span;      /* 0: no TCP probes */
	u32 tcp_stride;
	u32 last;          /* the highest sequence number in use */
	u32 tail;          /* bytes from the mark to the end of every packet that carries it; 0: not the same for all */
	u32 stage_tail;    /* the same for struct np_stamp (for TCP: bytes of a SYN); 0: no stamps */
	u32 silent;        /* only where the time has none of these bits is the clock read again: a fifth of what a record costs */
	u32 none;
	u64 zero;          /* always 0, which the verifier can't know: see walk.h */
};
