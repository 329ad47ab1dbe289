//! Messages of nf_tables (`linux/netfilter/nf_tables.h`), sent over netlink, since the image has no `nft`.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    time::Duration,
};

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

/// Timeout for the kernel's response.
const NETLINK_TIMEOUT: Duration = Duration::from_secs(5);

// Message types of the subsystem nf_tables.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
pub(super) const NEW_TABLE: u16 = 0;
pub(super) const GET_TABLE: u16 = 1;
pub(super) const DELETE_TABLE: u16 = 2;
pub(super) const NEW_CHAIN: u16 = 3;
pub(super) const GET_CHAIN: u16 = 4;
pub(super) const NEW_RULE: u16 = 6;
pub(super) const GET_RULE: u16 = 7;
pub(super) const GET_SET_ELEMENTS: u16 = 13;

/// Type of messages with an error code (`NLMSG_ERROR`).
const ERROR: u16 = 2;

/// Family of tables for IPv4 and IPv6.
pub(super) const INET: u8 = 1;

/// A list of netlink attributes.
#[derive(Default)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.pad();
    }

    pub(super) fn text(&mut self, kind: u16, text: &str) {
        self.bytes(kind, &[text.as_bytes(), b"\0"].concat());
    }

    /// Adds a number in network byte order, as nf_tables requires.
    pub(super) fn number(&mut self, kind: u16, number: u32) {
        self.bytes(kind, &number.to_be_bytes());
    }

    pub(super) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        const NESTED: u16 = 1 << 15;
        let mut inner = Self::default();
        fill(&mut inner);
        self.bytes(kind | NESTED, &inner.0);
    }

    /// Returns the attributes as bytes.
    #[cfg(test)]
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// A transaction of messages: the kernel applies all or none.
pub(super) struct Batch {
    bytes: Attributes,
    sequence: u32,
}

impl Batch {
    pub(super) fn begin() -> Self {
        let mut batch = Self { bytes: Attributes::default(), sequence: 0 };
        batch.header(BATCH_BEGIN, 0, SUBSYSTEM, &[]);
        batch
    }

    pub(super) fn message(&mut self, message: u16, fill: impl FnOnce(&mut Attributes)) {
        let mut body = Attributes::default();
        fill(&mut body);
        let create = if message == GET_TABLE { 0 } else { libc::NLM_F_CREATE };
        // Each message is acknowledged; the last acknowledgement confirms the transaction.
        self.header(SUBSYSTEM << 8 | message, create | libc::NLM_F_ACK, 0, &body.0);
    }

    fn header(&mut self, kind: u16, flags: i32, resource: u16, body: &[u8]) {
        let family = if resource == 0 { INET } else { 0 };
        self.bytes.0.extend(message(kind, flags, self.sequence, (family, resource), body));
        self.bytes.pad();
        self.sequence += 1;
    }

    /// Applies the transaction.
    pub(super) fn commit(mut self) -> io::Result<()> {
        let answers = self.sequence - 1;
        self.header(BATCH_END, 0, SUBSYSTEM, &[]);
        send_and_wait(&self.bytes.0, answers)
    }
}

/// Returns a message with the header of netfilter: family and resource.
fn message(kind: u16, flags: i32, sequence: u32, (family, resource): (u8, u16), body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(20 + body.len()).unwrap_or(u32::MAX);
    let flags = u16::try_from(flags | libc::NLM_F_REQUEST).unwrap_or_default();
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&0u32.to_ne_bytes());
    bytes.extend_from_slice(&[family, 0]);
    bytes.extend_from_slice(&resource.to_be_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// A part of a response: the family, and attributes.
type DumpedObject = (u8, Vec<u8>);

/// Returns everything of one type. The response is read again if the kernel's rules change
/// meanwhile.
pub(super) fn dump(kind: u16, family: u8, fill: impl Fn(&mut Attributes)) -> io::Result<Vec<DumpedObject>> {
    /// Attempts to read while others change the rules.
    const ATTEMPTS: usize = 5;
    let mut body = Attributes::default();
    fill(&mut body);
    let request = message(SUBSYSTEM << 8 | kind, libc::NLM_F_DUMP, 0, (family, 0), &body.0);
    for _ in 0..ATTEMPTS {
        if let Some(found) = dump_once(&request)? {
            return Ok(found);
        }
    }
    Err(io::Error::new(io::ErrorKind::Interrupted, "the rules change while they are read"))
}

/// Returns the response to a request; `None` if the rules changed meanwhile.
fn dump_once(request: &[u8]) -> io::Result<Option<Vec<DumpedObject>>> {
    const INTERRUPTED: u16 = 0x10;
    const DONE: u16 = 3;
    let netlink = open()?;
    sendto(netlink.as_raw_fd(), request, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let (mut found, mut is_consistent, mut buffer) = (Vec::new(), true, vec![0; 1 << 16]);
    loop {
        let length = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        for NetfilterMessage { kind, flags, body } in messages(&buffer[..length]) {
            is_consistent &= flags & INTERRUPTED == 0;
            match (kind, body) {
                (ERROR | DONE, [a, b, c, d, ..]) => match i32::from_ne_bytes([*a, *b, *c, *d]) {
                    error if error == -libc::EINTR => return Ok(None),
                    error if error < 0 => return Err(io::Error::from_raw_os_error(-error)),
                    _ if kind == DONE => return Ok(is_consistent.then_some(found)),
                    _ => {}
                },
                (_, [family, _, _, _, attributes @ ..]) => found.push((*family, attributes.to_vec())),
                _ => {}
            }
        }
    }
}

/// A message of netlink.
struct NetfilterMessage<'a> {
    kind: u16,
    flags: u16,
    /// The message after netlink's header.
    body: &'a [u8],
}

/// Returns the messages in these bytes, up to the first that is malformed.
fn messages(mut bytes: &[u8]) -> Vec<NetfilterMessage<'_>> {
    let mut messages = Vec::new();
    while let Some((header, _)) = bytes.split_first_chunk::<16>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let Some(body) = bytes.get(16..length) else { break };
        let (kind, flags) = ([header[4], header[5]], [header[6], header[7]]);
        let (kind, flags) = (u16::from_ne_bytes(kind), u16::from_ne_bytes(flags));
        messages.push(NetfilterMessage { kind, flags, body });
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    messages
}

/// Returns whether a table of the family [`INET`] exists.
pub(super) fn has_table(name: &str) -> bool {
    let mut request = Batch { bytes: Attributes::default(), sequence: 0 };
    request.message(GET_TABLE, |body| body.text(1, name));
    send_and_wait(&request.bytes.0, 1).is_ok()
}

fn open() -> io::Result<OwnedFd> {
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    let idle_timeout = TimeVal::new(NETLINK_TIMEOUT.as_secs().cast_signed(), 0);
    setsockopt(&netlink, ReceiveTimeout, &idle_timeout)?;
    Ok(netlink)
}

/// Sends messages, and waits for so many acknowledgements, or for the first error.
fn send_and_wait(messages: &[u8], answers: u32) -> io::Result<()> {
    let netlink = open()?;
    let kernel = NetlinkAddr::new(0, 0);
    sendto(netlink.as_raw_fd(), messages, &kernel, MsgFlags::empty())?;
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

/// Returns the error codes of netlink messages; 0 means success.
fn errors(bytes: &[u8]) -> Vec<i32> {
    let errors = messages(bytes).into_iter().filter(|message| message.kind == ERROR);
    errors.filter_map(|message| Some(i32::from_ne_bytes(*message.body.first_chunk::<4>()?))).collect()
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
    fn an_error_is_found_in_the_response() {
        let message = |kind: u16, error: i32| {
            let head = [20u32.to_ne_bytes().to_vec(), kind.to_ne_bytes().to_vec(), vec![0; 10]].concat();
            [head, error.to_ne_bytes().to_vec()].concat()
        };
        assert_eq!(errors(&[message(2, 0), message(3, 9), message(2, -2)].concat()), [0, -2]);
    }

    proptest! {
        #[test]
        fn any_response_is_handled(answer: Vec<u8>) {
            let _ = errors(&answer);
        }
    }
}
