//! The cluster's DNS server, which knows no name.

use anyhow::Result;

use crate::lab::{GATEWAY, Lab, UdpServer};

/// Address of its service.
pub(super) const SERVICE: &str = "10.96.0.10";
/// Length of the header of a DNS message, in bytes.
const HEADER: usize = 12;

/// Starts the DNS server at [`GATEWAY`].
///
/// # Errors
/// If it cannot listen.
pub fn start(lab: &Lab) -> Result<UdpServer> {
    UdpServer::start(&lab.switch(), (GATEWAY, 53).into(), no_such_name)
}

/// Returns the response to a query with one question: NXDOMAIN.
fn no_such_name(query: &[u8]) -> Option<Vec<u8>> {
    let name = query.get(HEADER..)?.iter().position(|byte| *byte == 0)?;
    // A name without compression ends with the root, before type and class.
    let question = query.get(HEADER..HEADER + name + 5)?;
    let mut response = query[..2].to_vec();
    response.extend([0x81, 0x83, 0, 1, 0, 0, 0, 0, 0, 0]);
    response.extend(question);
    Some(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_unknown() {
        let query =
            b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01\x01a\x02bc\x00\x00\x01\x00\x01\x00\x00\x29";
        let response = b"\x12\x34\x81\x83\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x02bc\x00\x00\x01\x00\x01";
        assert_eq!(no_such_name(query), Some(response.to_vec()));
        assert_eq!(no_such_name(&query[..14]), None);
    }
}
