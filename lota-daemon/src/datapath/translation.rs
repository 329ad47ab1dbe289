//! Address translation is kept away from the virtual addresses.
//!
//! A host port 80 (an ingress controller's, a service balancer's) is a rule that translates port 80 of *any* local
//! address, behind the programs at the interfaces: it would lead allowed pods, and refused ones, to somebody else. What
//! is not tracked is not translated, so one nftables table says `notrack` to and from each virtual address:
//! `nft list table inet lota` shows it. Spoken over netlink (`linux/netfilter/nf_tables.h`), since the image has no `nft`.

use std::{io, net::IpAddr, os::fd::AsRawFd as _, time::Duration};

use anyhow::{Context as _, Result};
use nix::{
    libc,
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt,
            socket, sockopt::ReceiveTimeout,
        },
        time::TimeVal,
    },
};

const TABLE: &str = "lota";
/// Longest wait for the kernel's answer.
const PATIENCE: Duration = Duration::from_secs(5);

// Messages, of the subsystem nf_tables.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
const NEW_TABLE: u16 = 0;
const GET_TABLE: u16 = 1;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;

const INET: u8 = 1;
/// Before connections are tracked (`NF_IP_PRI_RAW`).
const RAW: i32 = -300;
const PREROUTING: u32 = 0;
const OUTPUT: u32 = 3;

/// Keeps translation away from these addresses, and from no others.
///
/// # Errors
/// If the kernel refuses, as one without nf_tables does.
pub(super) fn keep_away(addresses: &[IpAddr]) -> Result<()> {
    let mut batch = Batch::begin();
    // Made, so that there is one to delete; deleted, so that nothing of an earlier one is left.
    for message in [NEW_TABLE, DELETE_TABLE, NEW_TABLE] {
        batch.message(message, |body| body.text(1, TABLE));
    }
    for (chain, hook) in [("prerouting", PREROUTING), ("output", OUTPUT)] {
        batch.message(NEW_CHAIN, |body| {
            body.text(1, TABLE);
            body.text(3, chain);
            body.nest(4, |hooked| {
                hooked.number(1, hook);
                hooked.number(2, RAW.cast_unsigned());
            });
            body.text(7, "filter");
        });
        for address in addresses {
            for end in [End::Source, End::Destination] {
                batch.message(NEW_RULE, |body| {
                    body.text(1, TABLE);
                    body.text(2, chain);
                    body.nest(4, |expressions| untracked(expressions, *address, end));
                });
            }
        }
    }
    batch.end().context("keeping address translation away from the virtual address")
}

/// Is the table there?
pub(super) fn is_kept_away() -> bool {
    let mut batch = Batch { bytes: Attributes::default(), sequence: 0 };
    batch.message(GET_TABLE, |body| body.text(1, TABLE));
    batch.send().is_ok()
}

/// Takes the table out again.
///
/// # Errors
/// If the kernel refuses.
pub(super) fn let_in() -> Result<()> {
    if !is_kept_away() {
        return Ok(());
    }
    let mut batch = Batch::begin();
    batch.message(DELETE_TABLE, |body| body.text(1, TABLE));
    batch.end().context("removing the nftables table lota")
}

#[derive(Clone, Copy)]
enum End {
    Source,
    Destination,
}

/// `meta nfproto ipv4 ip saddr 169.254.77.80 notrack`, and its likes.
fn untracked(expressions: &mut Attributes, address: IpAddr, end: End) {
    const REGISTER: u32 = 1;
    let (family, octets, offset) = match (address, end) {
        (IpAddr::V4(address), End::Source) => (2, address.octets().to_vec(), 12),
        (IpAddr::V4(address), End::Destination) => (2, address.octets().to_vec(), 16),
        (IpAddr::V6(address), End::Source) => (10, address.octets().to_vec(), 8),
        (IpAddr::V6(address), End::Destination) => (10, address.octets().to_vec(), 24),
    };
    let equals = |value: &[u8], data: &mut Attributes| {
        data.number(1, REGISTER);
        data.number(2, 0);
        data.nest(3, |compared| compared.bytes(1, value));
    };
    expression(expressions, "meta", |data| {
        data.number(1, REGISTER);
        // The family of the packet's addresses.
        data.number(2, 15);
    });
    expression(expressions, "cmp", |data| equals(&[family], data));
    expression(expressions, "payload", |data| {
        data.number(1, REGISTER);
        // From the network header on.
        data.number(2, 1);
        data.number(3, offset);
        data.number(4, u32::try_from(octets.len()).unwrap_or_default());
    });
    expression(expressions, "cmp", |data| equals(&octets, data));
    expression(expressions, "notrack", |_| ());
}

fn expression(list: &mut Attributes, name: &str, data: impl FnOnce(&mut Attributes)) {
    list.nest(1, |expression| {
        expression.text(1, name);
        expression.nest(2, data);
    });
}

/// Netlink attributes, one after another.
#[derive(Default)]
struct Attributes(Vec<u8>);

impl Attributes {
    fn bytes(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.pad();
    }

    fn text(&mut self, kind: u16, text: &str) {
        self.bytes(kind, &[text.as_bytes(), b"\0"].concat());
    }

    /// nf_tables' numbers are in network order.
    fn number(&mut self, kind: u16, number: u32) {
        self.bytes(kind, &number.to_be_bytes());
    }

    fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        const NESTED: u16 = 1 << 15;
        let mut inner = Self::default();
        fill(&mut inner);
        self.bytes(kind | NESTED, &inner.0);
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// Messages that are all carried out, or none.
struct Batch {
    bytes: Attributes,
    sequence: u32,
}

impl Batch {
    fn begin() -> Self {
        let mut batch = Self { bytes: Attributes::default(), sequence: 0 };
        batch.header(BATCH_BEGIN, 0, SUBSYSTEM, &[]);
        batch
    }

    fn message(&mut self, message: u16, fill: impl FnOnce(&mut Attributes)) {
        let mut body = Attributes::default();
        fill(&mut body);
        let create = if message == GET_TABLE { 0 } else { libc::NLM_F_CREATE };
        // Answered, each: the last answer says that all is done.
        self.header(SUBSYSTEM << 8 | message, create | libc::NLM_F_ACK, 0, &body.0);
    }

    fn header(&mut self, kind: u16, flags: i32, resource: u16, body: &[u8]) {
        let family = if resource == 0 { INET } else { 0 };
        let length = u32::try_from(20 + body.len()).unwrap_or(u32::MAX);
        let flags = u16::try_from(flags | libc::NLM_F_REQUEST).unwrap_or_default();
        let bytes = &mut self.bytes.0;
        bytes.extend_from_slice(&length.to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(&self.sequence.to_ne_bytes());
        bytes.extend_from_slice(&0u32.to_ne_bytes());
        bytes.extend_from_slice(&[family, 0]);
        bytes.extend_from_slice(&resource.to_be_bytes());
        bytes.extend_from_slice(body);
        self.bytes.pad();
        self.sequence += 1;
    }

    fn end(mut self) -> io::Result<()> {
        let answers = self.sequence - 1;
        self.header(BATCH_END, 0, SUBSYSTEM, &[]);
        self.send_and_hear(answers)
    }

    fn send(self) -> io::Result<()> {
        self.send_and_hear(1)
    }

    /// Sends it, and waits for so many answers, or for the first that is an error.
    fn send_and_hear(&self, answers: u32) -> io::Result<()> {
        let netlink = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )?;
        let patience = TimeVal::new(PATIENCE.as_secs().cast_signed(), 0);
        setsockopt(&netlink, ReceiveTimeout, &patience)?;
        let kernel = NetlinkAddr::new(0, 0);
        sendto(netlink.as_raw_fd(), &self.bytes.0, &kernel, MsgFlags::empty())?;
        let (mut heard, mut buffer) = (0, vec![0; 1 << 16]);
        while heard < answers {
            let length = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            for error in errors(&buffer[..length]) {
                match error {
                    0 => heard += 1,
                    error => return Err(io::Error::from_raw_os_error(-error)),
                }
            }
        }
        Ok(())
    }
}

/// The errors among netlink messages; 0 is none.
fn errors(mut messages: &[u8]) -> Vec<i32> {
    const ERROR: u16 = 2;
    let mut errors = Vec::new();
    while let Some((header, _)) = messages.split_first_chunk::<16>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let Some(message) = messages.get(..length).filter(|_| length >= 16) else { break };
        if u16::from_ne_bytes([header[4], header[5]]) == ERROR
            && let Some(error) = message.get(16..20)
        {
            errors.push(i32::from_ne_bytes([error[0], error[1], error[2], error[3]]));
        }
        messages = messages.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    errors
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn attributes_are_padded_and_nested() {
        let mut attributes = Attributes::default();
        attributes.nest(4, |inner| inner.text(1, "ab"));
        let expected =
            [12u16.to_ne_bytes(), (4u16 | 1 << 15).to_ne_bytes(), 7u16.to_ne_bytes(), 1u16.to_ne_bytes()];
        assert_eq!(attributes.0, [expected.concat(), b"ab\0\0".to_vec()].concat());
    }

    #[test]
    fn an_answer_says_what_failed() {
        let message = |kind: u16, error: i32| {
            let head = [20u32.to_ne_bytes().to_vec(), kind.to_ne_bytes().to_vec(), vec![0; 10]].concat();
            [head, error.to_ne_bytes().to_vec()].concat()
        };
        assert_eq!(errors(&[message(2, 0), message(3, 9), message(2, -2)].concat()), [0, -2]);
    }

    proptest! {
        #[test]
        fn any_answer_is_survived(answer: Vec<u8>) {
            let _ = errors(&answer);
        }
    }
}
