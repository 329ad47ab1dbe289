//! What the programs decide about a packet. The number is the index into the verdict counters.

macro_rules! verdicts {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal, $label:literal;)+) => {
        /// What a program decided about a packet, and the index of its counter.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Verdict {
            $($(#[doc = $doc])+ $name = $number,)+
        }

        impl Verdict {
            /// Every verdict, in counter order.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];
            /// Number of verdicts, and so of counters.
            pub const COUNT: usize = Self::ALL.len();

            /// The label of this verdict in metrics and tables.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)+ }
            }
        }
    };
}

verdicts! {
    /// Not for LOTA: the next program in the chain sees it.
    NotOurs = 0, "not_ours";
    /// An allowed pod's new connection, handed to the daemon's listener: at socket lookup, or by TC.
    Steered = 1, "steered";
    /// An allowed pod's packet of a connection that exists already.
    Established = 2, "established";
    /// A pod without access (or on another interface than its entry's): not steered, so the kernel refuses.
    Denied = 3, "denied";
    /// A pod without access, on a connection that is still open: dropped.
    Revoked = 4, "revoked";
    /// An allowed pod, but no daemon listens: not steered, so the kernel refuses.
    NoListener = 5, "no_listener";
    /// A name query to the VIP, left to the daemon's responder.
    Dns = 6, "dns";
    /// Another port or protocol of the VIP: left to the stack, where the backstop refuses it.
    VipOther = 7, "vip_other";
    /// A fragment toward the VIP, dropped: it has no ports to judge by.
    Fragment = 8, "fragment";
    /// Toward the VIP, but cut short or behind IPv6 extension headers; or, wherever it is for, behind more VLAN
    /// tags than are looked through: dropped.
    Malformed = 9, "malformed";
    /// A pod's packet to a peer or admin port: dropped.
    Protected = 10, "protected";
    /// Reached the VIP unsteered: refused by the `sk_lookup` program.
    Backstop = 11, "backstop";
    /// From a peer to the peer port.
    Peer = 12, "peer";
    /// From someone else to the peer port: dropped at the uplink.
    Stranger = 13, "stranger";
    /// From outside the node to the VIP: dropped at the uplink.
    Outside = 14, "outside";
    /// An allowed pod's name query for the zone, to whatever resolver: answered in the datapath.
    Answered = 15, "answered";
    /// An allowed pod's packet, left to the stack: of a connection that exists, or to be steered at socket lookup.
    Passed = 16, "passed";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_counter_indices() {
        for (index, verdict) in Verdict::ALL.iter().enumerate() {
            assert_eq!(*verdict as usize, index);
        }
    }
}
