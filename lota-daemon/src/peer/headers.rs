//! What nodes tell each other beside the client's request and the answer to it.

use std::net::IpAddr;

use hyper::{
    HeaderMap,
    header::{HeaderName, HeaderValue},
};

use crate::s3::{ByteRange, RangeRequest};

/// The pod that asks, whose fills are budgeted.
const CLIENT: HeaderName = HeaderName::from_static("lota-client");
const PING: HeaderName = HeaderName::from_static("lota-ping");
const SKIP: HeaderName = HeaderName::from_static("lota-skip");
const PART: HeaderName = HeaderName::from_static("lota-part");
const LOAD: HeaderName = HeaderName::from_static("lota-load");
const CAPACITY: HeaderName = HeaderName::from_static("lota-capacity");
const OWNERS: HeaderName = HeaderName::from_static("lota-owners");

/// What one node wants of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The answer to the client's request.
    All,
    /// The same, without so many bytes, which the client has already.
    Rest(u64),
    /// These bytes of the object, for a cache, and only from a cache: the client's request says by what right.
    Part(ByteRange),
    /// A sign of life.
    Ping,
}

impl Wanted {
    pub(super) fn write(self, headers: &mut HeaderMap) {
        match self {
            Self::All => {}
            Self::Rest(skip) => drop(headers.insert(SKIP, HeaderValue::from(skip))),
            Self::Part(range) => {
                if let Ok(part) = HeaderValue::from_str(&range.to_string()) {
                    headers.insert(PART, part);
                }
            }
            Self::Ping => drop(headers.insert(PING, HeaderValue::from_static("1"))),
        }
    }

    /// What a verified request says; `None` if it makes no sense.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        if headers.contains_key(PING) {
            return Some(Self::Ping);
        }
        if let Some(part) = headers.get(PART) {
            return match RangeRequest::parse(part.to_str().ok()?) {
                RangeRequest::FromTo(first, last) => {
                    Some(Self::Part(ByteRange { start: first, end: last.checked_add(1)? }))
                }
                _ => None,
            };
        }
        Some(match skipped(headers) {
            0 => Self::All,
            skip => Self::Rest(skip),
        })
    }
}

/// Bytes that an answer was given without.
#[must_use]
pub fn skipped(headers: &HeaderMap) -> u64 {
    number(headers, &SKIP).unwrap_or_default()
}

/// Says in an answer that so many bytes are left out of it.
pub fn set_skipped(headers: &mut HeaderMap, skip: u64) {
    headers.insert(SKIP, HeaderValue::from(skip));
}

/// Says for whom a request is.
pub(super) fn set_client(headers: &mut HeaderMap, client: IpAddr) {
    if let Ok(client) = HeaderValue::from_str(&client.to_canonical().to_string()) {
        headers.insert(CLIENT, client);
    }
}

/// The pod that a verified request is for.
#[must_use]
pub fn client(headers: &HeaderMap) -> Option<IpAddr> {
    headers.get(CLIENT)?.to_str().ok()?.parse().ok()
}

/// What a node says of itself with every answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Bytes of answers that it still has to send.
    pub load: u64,
    /// What its cache holds at most, in bytes: its weight in placement.
    pub capacity: Option<u64>,
    /// How many nodes should answer for the object that was asked for, if it says so.
    pub owners: Option<usize>,
}

impl Told {
    /// Says it.
    pub fn write(self, headers: &mut HeaderMap) {
        headers.insert(LOAD, HeaderValue::from(self.load));
        if let Some(capacity) = self.capacity {
            headers.insert(CAPACITY, HeaderValue::from(capacity));
        }
        if let Some(owners) = self.owners {
            headers.insert(OWNERS, HeaderValue::from(owners));
        }
    }

    /// What a verified answer says.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        let owners = number(headers, &OWNERS).and_then(|owners| usize::try_from(owners).ok());
        let load = number(headers, &LOAD).unwrap_or_default();
        Self { load, capacity: number(headers, &CAPACITY), owners }
    }
}

pub(super) fn number(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_wanted_is_understood() {
        let part = Wanted::Part(ByteRange { start: 5, end: 6 });
        for wanted in [Wanted::All, Wanted::Rest(7), part, Wanted::Ping] {
            let mut headers = HeaderMap::new();
            wanted.write(&mut headers);
            assert_eq!(Wanted::of(&headers), Some(wanted));
        }
        let told = Told { load: 9, capacity: Some(1 << 40), owners: Some(3) };
        let mut headers = HeaderMap::new();
        told.write(&mut headers);
        assert_eq!(Told::of(&headers), told);
        assert_eq!(Told::of(&HeaderMap::new()), Told::default());
    }

    proptest! {
        #[test]
        fn any_part_is_survived(part in "[ -~]*", numbers in "bytes=[0-9]{1,20}-[0-9]{1,20}") {
            for part in [part, numbers] {
                let mut headers = HeaderMap::new();
                headers.insert(PART, HeaderValue::from_str(&part).unwrap());
                if let Some(Wanted::Part(range)) = Wanted::of(&headers) {
                    prop_assert!(range.start < range.end);
                }
            }
        }
    }
}
