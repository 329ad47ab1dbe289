//! Verdicts of the programs on packets. The number of a verdict is the index of its counter.

macro_rules! verdicts {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal, $label:literal;)+) => {
        /// Verdict of a program on a packet, and the index of its counter.
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

            /// Returns the label of this verdict in metrics and tables.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)+ }
            }
        }
    };
}

verdicts! {
    /// Not for LOTA: passed to the next program in the chain.
    NotOurs = 0, "not_ours";
    /// A new connection of an allowed pod, redirected to the daemon's listener by socket lookup or TC.
    Redirected = 1, "redirected";
    /// A packet of an allowed pod on an existing connection.
    Established = 2, "established";
    /// A pod without access, or on another interface than in its entry: not redirected, so the kernel refuses it.
    Denied = 3, "denied";
    /// A pod without access, on a connection that is still open: dropped.
    Revoked = 4, "revoked";
    /// An allowed pod, but no daemon listens: not redirected, so the kernel refuses it.
    NoListener = 5, "no_listener";
    /// A DNS query to the VIP, left to the daemon's responder.
    Dns = 6, "dns";
    /// Another port or protocol of the VIP: left to the stack, where the backstop refuses it.
    VipOther = 7, "vip_other";
    /// A fragment to the VIP, dropped because it has no ports.
    Fragment = 8, "fragment";
    /// Dropped: a packet to the VIP that is truncated or has IPv6 extension headers, or any packet with more VLAN tags
    /// than are parsed.
    Malformed = 9, "malformed";
    /// A pod's packet to a peer or admin port: dropped.
    Protected = 10, "protected";
    /// Reached the VIP without a redirect: refused by the `sk_lookup` program.
    Backstop = 11, "backstop";
    /// A packet of a peer to the peer port.
    Peer = 12, "peer";
    /// A packet to the peer port that is not from a peer: dropped at the uplink.
    UnknownPeer = 13, "unknown_peer";
    /// A packet from outside the node to the VIP: dropped at the uplink.
    External = 14, "external";
    /// A DNS query of an allowed pod for a name of the endpoint, to any resolver: answered in the datapath.
    Answered = 15, "answered";
    /// A packet of an allowed pod, left to the stack: on an existing connection, or redirected by socket lookup.
    Delivered = 16, "delivered";
    /// A DNS query of an allowed pod that would be answered if the daemon lived, or a new connection to a target that would
    /// be redirected: left alone.
    Bypassed = 17, "bypassed";
    /// The address of an allowed pod, from a socket of another pod or, if it must have one, without a socket: dropped.
    Spoofed = 18, "spoofed";
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
