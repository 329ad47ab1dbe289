//! Name queries, as the responder and the kernel side read them.

#![no_main]

use std::net::Ipv4Addr;

use libfuzzer_sys::fuzz_target;
use lota_common::{MAX_ZONE, Settings};
use lota_daemon::{dns::Responder, s3::Zone};
use lota_ebpf::{names, packet::Bytes};

struct Message<'a>(&'a [u8]);

impl Bytes for Message<'_> {
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.get(offset..)?.first_chunk().copied()
    }
}

fuzz_target!(|query: &[u8]| {
    let Ok(zone) = Zone::parse("cwlota.com") else { return };
    let Ok(responder) = Responder::new(&zone, Ipv4Addr::new(169, 254, 77, 80), None) else { return };
    let answer = responder.answer(query);
    if let Some(answer) = &answer {
        assert_eq!(answer[..2], query[..2], "an answer to another query");
        assert!(answer[2] & 0x80 != 0, "an answer that says it is a query");
        assert!(responder.answer(answer).is_none(), "an answer that is answered: two could talk for ever");
    }
    if let (Some(_), Some(answer)) = (names::query(&Message(query), 0, &settings(&zone)), answer) {
        assert_eq!(answer[3] & 0x0f, 0, "the kernel side answers what the responder refuses");
    }
});

fn settings(zone: &Zone) -> Settings {
    let wire = zone.wire();
    let mut settings = Settings {
        vip4: [169, 254, 77, 80],
        vip6: [0; 16],
        http_port: [0, 80],
        dns_port: [0, 53],
        peer_port: [0; 2],
        admin_port: [0; 2],
        zone: [0; MAX_ZONE],
        zone_length: u8::try_from(wire.len()).unwrap_or_default(),
        answer_names: 1,
        default_allow: 0,
        lookups: 0,
    };
    settings.zone[MAX_ZONE - wire.len()..].copy_from_slice(&wire);
    settings
}
