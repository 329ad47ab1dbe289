//! The endpoint's names, and the ports of the VIP that are redirected.

use std::fmt;

use aya::maps::lpm_trie::Key;
use lota_common::{FIRST_STAND_IN, MAX_NAME, MAX_NAMES, MAX_PORTS, NameKey, RawName};
use serde::{Deserialize, Serialize};

use super::config::WhenDown;

/// Longest label of a domain name, in bytes (RFC 1035, section 2.3.4).
const MAX_LABEL: usize = 63;

/// Maximum number of labels of a name. The datapath reads more, so that the name of a bucket can precede it.
const MAX_LABELS: usize = 32;

/// Kind of a name of the endpoint: it determines which pods resolve it, and whether they do while the daemon is down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NameKind {
    /// LOTA's own name, which only LOTA serves.
    Own,
    /// The gateway's own name, which also works without LOTA. Pods without access, and all pods while the daemon is
    /// down, resolve it by the cluster's DNS.
    Intercepted,
}

/// A name of the endpoint. It covers all names under it; the longest name decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointName {
    /// The name in lower case, without a final dot.
    name: String,
    /// Kind of the name.
    kind: NameKind,
    /// Behavior while the daemon is down.
    when_down: WhenDown,
}

impl EndpointName {
    /// Returns a name of LOTA's own.
    ///
    /// # Errors
    /// A message, if it is not a DNS name or too long.
    pub fn own(name: &str, when_down: WhenDown) -> Result<Self, String> {
        Ok(Self { name: parse(name)?, kind: NameKind::Own, when_down })
    }

    /// Returns a name of the gateway.
    ///
    /// # Errors
    /// A message, if it is not a DNS name or too long.
    pub fn intercepted(name: &str) -> Result<Self, String> {
        Ok(Self { name: parse(name)?, kind: NameKind::Intercepted, when_down: WhenDown::ClusterDns })
    }

    /// Returns the name in lower case, without a final dot.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// Returns the kind of the name.
    #[must_use]
    pub fn kind(&self) -> NameKind {
        self.kind
    }

    /// Returns the behavior while the daemon is down.
    #[must_use]
    pub fn when_down(&self) -> WhenDown {
        self.when_down
    }

    /// Returns the entry of the map of names.
    #[must_use]
    pub fn raw(&self) -> (Key<NameKey>, RawName) {
        let labels = self.name.split('.').flat_map(|label| {
            let length = u8::try_from(label.len()).unwrap_or_default();
            [length].into_iter().chain(label.bytes())
        });
        let wire: Vec<u8> = labels.chain([0]).collect();
        let (mut reversed, mut name) = ([0; MAX_NAME], [0; MAX_NAME]);
        for (place, byte) in reversed.iter_mut().zip(wire.iter().rev()) {
            *place = *byte;
        }
        for (place, byte) in name.iter_mut().zip(self.name.bytes()) {
            *place = byte.cast_signed();
        }
        let length = u32::try_from(wire.len()).unwrap_or_default();
        let kind = match self.kind {
            NameKind::Own => RawName::OWN,
            NameKind::Intercepted => RawName::INTERCEPTED,
        };
        let needs_daemon = u32::from(self.when_down == WhenDown::ClusterDns);
        (Key::new(8 * length, NameKey { reversed }), RawName { name, length, kind, needs_daemon })
    }

    /// Returns the name of an entry of the map of names.
    pub(crate) fn from_raw(raw: &RawName) -> Self {
        let characters = raw.name.iter().map(|character| character.cast_unsigned());
        let name = characters.take_while(|character| *character != 0).map(char::from).collect();
        let kind = if raw.kind == RawName::OWN { NameKind::Own } else { NameKind::Intercepted };
        let when_down = if raw.needs_daemon == 1 { WhenDown::ClusterDns } else { WhenDown::Refuse };
        Self { name, kind, when_down }
    }
}

impl fmt::Display for EndpointName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.name)
    }
}

fn parse(name: &str) -> Result<String, String> {
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let is_label = |label: &str| {
        (1..=MAX_LABEL).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    if !name.split('.').all(is_label) {
        return Err(format!("`{name}` is not a DNS name"));
    }
    // The length of the first label and the final zero are added.
    if name.len() + 2 > MAX_NAME {
        return Err(format!("`{name}` is longer than {} characters", MAX_NAME - 2));
    }
    if name.split('.').count() > MAX_LABELS {
        return Err(format!("`{name}` has more than {MAX_LABELS} labels"));
    }
    Ok(name)
}

/// The names of the endpoint: at most [`MAX_NAMES`], each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointNames(Vec<EndpointName>);

impl EndpointNames {
    /// Returns the names, if the datapath can hold them.
    ///
    /// # Errors
    /// A message, if there are too many, or one is listed twice.
    pub fn new(names: Vec<EndpointName>) -> Result<Self, String> {
        if names.len() > MAX_NAMES {
            return Err(format!("{} names; at most {MAX_NAMES} are possible", names.len()));
        }
        let is_repeated = |(index, name): &(usize, &EndpointName)| {
            names[..*index].iter().any(|other| other.name == name.name)
        };
        if let Some((_, twice)) = names.iter().enumerate().find(is_repeated) {
            return Err(format!("`{twice}` is listed twice"));
        }
        Ok(Self(names))
    }

    /// Returns each name.
    pub fn iter(&self) -> impl Iterator<Item = &EndpointName> {
        self.0.iter()
    }

    /// Returns the length of the longest name in wire format.
    pub(crate) fn longest(&self) -> u8 {
        let longest = self.0.iter().map(|name| name.name.len() + 2).max();
        longest.and_then(|length| u8::try_from(length).ok()).unwrap_or(0)
    }
}

/// The redirected ports of the VIP: at least one, at most [`MAX_PORTS`], each once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPorts(Vec<u16>);

impl EndpointPorts {
    /// Returns the ports, if the datapath can redirect them. `dns` is the port of the DNS responder on the VIP.
    ///
    /// # Errors
    /// A message, if there are none or too many, or one is listed twice or not possible.
    pub fn new(ports: &[u16], dns: u16) -> Result<Self, String> {
        if ports.is_empty() || ports.len() > MAX_PORTS {
            return Err(format!("{} ports; 1 to {MAX_PORTS} are possible", ports.len()));
        }
        for (index, port) in ports.iter().enumerate() {
            if *port == 0 || *port == dns {
                return Err(format!("port {port} cannot be redirected"));
            }
            if *port >= FIRST_STAND_IN {
                return Err(format!(
                    "port {port} cannot be redirected: those from {FIRST_STAND_IN} on stand for gateways' addresses"
                ));
            }
            if ports[..index].contains(port) {
                return Err(format!("port {port} is listed twice"));
            }
        }
        Ok(Self(ports.to_vec()))
    }

    /// Returns the ports, as listed.
    #[must_use]
    pub fn as_slice(&self) -> &[u16] {
        &self.0
    }

    /// Returns the ports as in [`Settings`](lota_common::Settings).
    #[must_use]
    pub fn raw(&self) -> [u16; MAX_PORTS] {
        let mut raw = [0; MAX_PORTS];
        raw[..self.0.len()].copy_from_slice(&self.0);
        raw
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_names_of_limited_length() {
        let longest = format!("{0}.{0}", "x".repeat(62)) + "y";
        assert_eq!(longest.len(), 126);
        for name in ["s3.internal", "S3.Internal.", "localhost", "a_b.s3-1.internal", &longest] {
            let parsed = EndpointName::intercepted(name).unwrap();
            assert_eq!(parsed.as_str(), name.trim_end_matches('.').to_ascii_lowercase());
        }
        for name in ["", ".", "a..b", "s3.internal..", "*.s3.internal", "ü.internal", "a b", &"x".repeat(64)]
        {
            assert!(EndpointName::intercepted(name).unwrap_err().contains("not a DNS name"), "{name}");
        }
        assert!(EndpointName::own(&format!("z.{longest}"), WhenDown::Refuse).unwrap_err().contains("126"));
    }

    #[test]
    fn names_have_a_limited_number_of_labels() {
        let name = |labels| EndpointName::intercepted(&vec!["a"; labels].join("."));
        assert!(name(MAX_LABELS).is_ok());
        assert!(name(MAX_LABELS + 1).unwrap_err().contains("more than 32 labels"));
    }

    #[test]
    fn entries_are_reversed_and_read_back() {
        for (name, kind, needs_daemon) in [
            (EndpointName::own("cwlota.com", WhenDown::Refuse), RawName::OWN, 0),
            (EndpointName::own("cwlota.com", WhenDown::ClusterDns), RawName::OWN, 1),
            (EndpointName::intercepted("CwLota.com"), RawName::INTERCEPTED, 1),
        ] {
            let name = name.unwrap();
            let (key, raw) = name.raw();
            assert_eq!((raw.length, raw.kind, raw.needs_daemon), (12, kind, needs_daemon));
            assert_eq!((key.prefix_len(), &key.data().reversed[..13]), (96, &b"\0moc\x03atolwc\x06\0"[..]));
            assert_eq!(EndpointName::from_raw(&raw), name);
        }
    }

    #[test]
    fn names_and_ports_have_limits() {
        let name = |number: usize| EndpointName::intercepted(&format!("n{number}.test")).unwrap();
        let names = |count| EndpointNames::new((0..count).map(name).collect());
        assert_eq!(names(MAX_NAMES).unwrap().longest(), 10);
        assert!(names(MAX_NAMES + 1).unwrap_err().contains("at most 64"));
        assert!(EndpointNames::new(vec![name(1), name(2), name(1)]).unwrap_err().contains("`n1.test`"));
        assert_eq!(EndpointNames::default().longest(), 0);

        let ports = |ports: &[u16]| EndpointPorts::new(ports, 53);
        assert_eq!(ports(&[80, 9000]).unwrap().raw(), [80, 9000, 0, 0, 0, 0, 0, 0]);
        for wrong in [&[][..], &[0], &[53], &[65_472], &[80, 443, 80], &[1, 2, 3, 4, 5, 6, 7, 8, 9]] {
            assert!(ports(wrong).is_err(), "{wrong:?}");
        }
        assert!(ports(&[1, 2, 3, 4, 5, 6, 7, 8]).is_ok());
    }
}
