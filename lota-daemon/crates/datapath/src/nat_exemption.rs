//! Exempts traffic of the VIPs from address translation, with an nftables table: `nft list table inet lota` shows it.
//!
//! A hostPort 80 (of an ingress controller or a service load balancer) is a rule that translates port 80 of *any*
//! local address, after the programs at the interfaces: it would redirect allowed and refused pods to another server.
//!
//! On a node that tracks connections, the table translates each address of such traffic to itself, before all other
//! rules do: the kernel translates a connection once. The connection is tracked like any other, so stateful firewall
//! rules (`ct state new tcp dport 80 accept`) apply to it. On a node that does not track connections, such rules would
//! start to track those of the whole node, so the table applies `notrack` to the VIPs until something else does.

use std::{fmt, fs, net::IpAddr};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::nf_tables::{
    NFT_CMP_EQ, NFT_META_NFPROTO, NFT_NAT_DNAT, NFT_NAT_SNAT, NFT_PAYLOAD_NETWORK_HEADER, NFTA_CHAIN_HOOK,
    NFTA_CHAIN_NAME, NFTA_CHAIN_TABLE, NFTA_CHAIN_TYPE, NFTA_CMP_DATA, NFTA_CMP_OP, NFTA_CMP_SREG,
    NFTA_DATA_VALUE, NFTA_EXPR_DATA, NFTA_EXPR_NAME, NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY, NFTA_LIST_ELEM,
    NFTA_META_DREG, NFTA_META_KEY, NFTA_NAT_FAMILY, NFTA_NAT_REG_ADDR_MIN, NFTA_NAT_TYPE, NFTA_PAYLOAD_BASE,
    NFTA_PAYLOAD_DREG, NFTA_PAYLOAD_LEN, NFTA_PAYLOAD_OFFSET, NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS,
    NFTA_RULE_TABLE, NFTA_TABLE_NAME,
};
use super::nfnetlink::{Attributes, Batch, DELETE_TABLE, NEW_CHAIN, NEW_RULE, NEW_TABLE, has_table};

const TABLE: &str = "lota";
/// Number of tracked connections of the network namespace.
const TRACKED: &str = "/proc/sys/net/netfilter/nf_conntrack_count";

const PREROUTING: u32 = 0;
const INPUT: u32 = 1;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;
/// Priority before connection tracking (`NF_IP_PRI_RAW`).
const RAW: i32 = -300;
/// Priorities before others' translation of destinations (`NF_IP_PRI_NAT_DST`, -100) and sources
/// (`NF_IP_PRI_NAT_SRC`, 100).
const BEFORE_DESTINATION: i32 = -150;
const BEFORE_SOURCE: i32 = 50;
/// Register for addresses.
const REGISTER: u32 = 1;

/// Method by which traffic of the VIPs is exempt from address translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NatExemption {
    /// It is not tracked.
    Untracked,
    /// It is tracked, and translated to the same addresses.
    Tracked,
}

impl fmt::Display for NatExemption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Untracked => "not tracked",
            Self::Tracked => "tracked",
        })
    }
}

/// Exempts these addresses, and no others.
///
/// # Errors
/// If the kernel refuses, for example because it has no nf_tables.
pub(super) fn install(addresses: &[IpAddr]) -> Result<NatExemption> {
    if tracks_connections() {
        match install_as(addresses, NatExemption::Tracked) {
            Ok(()) => return Ok(NatExemption::Tracked),
            Err(error) => {
                let error = format!("{error:#}");
                tracing::info!(error, "nf_tables cannot translate addresses here; using notrack");
            }
        }
    }
    install_as(addresses, NatExemption::Untracked)?;
    Ok(NatExemption::Untracked)
}

/// Returns whether the table is still there and fits the node.
pub(super) fn holds(installed: NatExemption) -> bool {
    has_table(TABLE) && (installed == NatExemption::Tracked || !tracks_connections())
}

/// Returns whether something on this node tracks connections.
fn tracks_connections() -> bool {
    let count = fs::read_to_string(TRACKED).ok();
    count.and_then(|count| count.trim().parse::<u64>().ok()).is_some_and(|count| count > 0)
}

/// Removes the table.
///
/// # Errors
/// If the kernel refuses.
pub(super) fn remove() -> Result<()> {
    if !has_table(TABLE) {
        return Ok(());
    }
    let mut batch = Batch::begin();
    batch.message(DELETE_TABLE, |body| body.text(NFTA_TABLE_NAME, TABLE));
    batch.commit().context("cannot remove the nftables table lota")
}

/// A chain of the table, and the expressions at the end of its rules.
struct ExemptingChain {
    name: &'static str,
    kind: &'static str,
    hook: u32,
    priority: i32,
    action: fn(&mut Attributes, IpAddr),
}

const UNTRACKED: [ExemptingChain; 2] = [
    ExemptingChain { name: "prerouting", kind: "filter", hook: PREROUTING, priority: RAW, action: notrack },
    ExemptingChain { name: "output", kind: "filter", hook: OUTPUT, priority: RAW, action: notrack },
];

#[rustfmt::skip]
const TRACKED_CHAINS: [ExemptingChain; 4] = [
    ExemptingChain { name: "prerouting", kind: "nat", hook: PREROUTING, priority: BEFORE_DESTINATION, action: keep_destination },
    ExemptingChain { name: "input", kind: "nat", hook: INPUT, priority: BEFORE_SOURCE, action: keep_source },
    ExemptingChain { name: "output", kind: "nat", hook: OUTPUT, priority: BEFORE_DESTINATION, action: keep_destination },
    ExemptingChain { name: "postrouting", kind: "nat", hook: POSTROUTING, priority: BEFORE_SOURCE, action: keep_source },
];

fn install_as(addresses: &[IpAddr], how: NatExemption) -> Result<()> {
    let mut batch = Batch::begin();
    // Deleting a table requires that it exists, so it is created first. Nothing of an earlier one is left then.
    for message in [NEW_TABLE, DELETE_TABLE, NEW_TABLE] {
        batch.message(message, |body| body.text(NFTA_TABLE_NAME, TABLE));
    }
    let chains: &[ExemptingChain] = match how {
        NatExemption::Untracked => &UNTRACKED,
        NatExemption::Tracked => &TRACKED_CHAINS,
    };
    for chain in chains {
        batch.message(NEW_CHAIN, |body| {
            body.text(NFTA_CHAIN_TABLE, TABLE);
            body.text(NFTA_CHAIN_NAME, chain.name);
            body.nest(NFTA_CHAIN_HOOK, |hooked| {
                hooked.number(NFTA_HOOK_HOOKNUM, chain.hook);
                hooked.number(NFTA_HOOK_PRIORITY, chain.priority.cast_unsigned());
            });
            body.text(NFTA_CHAIN_TYPE, chain.kind);
        });
        for address in addresses {
            // Of both directions, since tracking can begin with a packet of an open connection.
            for end in [End::Source, End::Destination] {
                batch.message(NEW_RULE, |body| {
                    body.text(NFTA_RULE_TABLE, TABLE);
                    body.text(NFTA_RULE_CHAIN, chain.name);
                    body.nest(NFTA_RULE_EXPRESSIONS, |expressions| {
                        matches(expressions, *address, end);
                        (chain.action)(expressions, *address);
                    });
                });
            }
        }
    }
    batch.commit().context("cannot exempt the VIPs from address translation")
}

#[derive(Clone, Copy)]
enum End {
    Source,
    Destination,
}

/// Adds the expressions of `meta nfproto ipv4 ip saddr 169.254.77.80` and similar matches.
fn matches(expressions: &mut Attributes, address: IpAddr, end: End) {
    let equals = |value: &[u8], data: &mut Attributes| {
        data.number(NFTA_CMP_SREG, REGISTER);
        data.number(NFTA_CMP_OP, NFT_CMP_EQ);
        data.nest(NFTA_CMP_DATA, |compared| compared.bytes(NFTA_DATA_VALUE, value));
    };
    expression(expressions, "meta", |data| {
        data.number(NFTA_META_DREG, REGISTER);
        // The family of the packet's addresses.
        data.number(NFTA_META_KEY, NFT_META_NFPROTO);
    });
    expression(expressions, "cmp", |data| equals(&[family(address)], data));
    load(expressions, address, end);
    expression(expressions, "cmp", |data| match address {
        IpAddr::V4(address) => equals(&address.octets(), data),
        IpAddr::V6(address) => equals(&address.octets(), data),
    });
}

/// Adds an expression that loads an address of the packet.
fn load(expressions: &mut Attributes, of_family: IpAddr, end: End) {
    let (offset, length) = match (of_family, end) {
        (IpAddr::V4(_), End::Source) => (12, 4),
        (IpAddr::V4(_), End::Destination) => (16, 4),
        (IpAddr::V6(_), End::Source) => (8, 16),
        (IpAddr::V6(_), End::Destination) => (24, 16),
    };
    expression(expressions, "payload", |data| {
        data.number(NFTA_PAYLOAD_DREG, REGISTER);
        data.number(NFTA_PAYLOAD_BASE, NFT_PAYLOAD_NETWORK_HEADER);
        data.number(NFTA_PAYLOAD_OFFSET, offset);
        data.number(NFTA_PAYLOAD_LEN, length);
    });
}

fn notrack(expressions: &mut Attributes, _: IpAddr) {
    expression(expressions, "notrack", |_| ());
}

/// Adds the expressions of `snat ip to ip saddr`.
fn keep_source(expressions: &mut Attributes, address: IpAddr) {
    load(expressions, address, End::Source);
    translate(expressions, address, NFT_NAT_SNAT);
}

/// Adds the expressions of `dnat ip to ip daddr`.
fn keep_destination(expressions: &mut Attributes, address: IpAddr) {
    load(expressions, address, End::Destination);
    translate(expressions, address, NFT_NAT_DNAT);
}

/// Adds a translation to the loaded address; `kind` is `NFT_NAT_SNAT` or `NFT_NAT_DNAT`.
fn translate(expressions: &mut Attributes, of_family: IpAddr, kind: u32) {
    expression(expressions, "nat", |data| {
        data.number(NFTA_NAT_TYPE, kind);
        data.number(NFTA_NAT_FAMILY, family(of_family).into());
        data.number(NFTA_NAT_REG_ADDR_MIN, REGISTER);
    });
}

/// Returns `NFPROTO_IPV4` or `NFPROTO_IPV6`.
fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { 2 } else { 10 }
}

fn expression(list: &mut Attributes, name: &str, data: impl FnOnce(&mut Attributes)) {
    list.nest(NFTA_LIST_ELEM, |expression| {
        expression.text(NFTA_EXPR_NAME, name);
        expression.nest(NFTA_EXPR_DATA, data);
    });
}
