//! Name queries, as the responder and the kernel side read them.

#![no_main]

use std::{net::Ipv4Addr, sync::Arc};

use libfuzzer_sys::fuzz_target;
use lota_common::{MAX_NAME, Settings};
use lota_daemon::dns::Responder;
use lota_datapath::{EndpointName, EndpointNames, WhenDown};
use lota_ebpf::{
    dns::{self, FoundName},
    packet::Bytes,
};
use tokio::sync::watch;

struct Message<'a> {
    bytes: &'a [u8],
    names: &'a EndpointNames,
}

impl Bytes for Message<'_> {
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.bytes.get(offset..)?.first_chunk().copied()
    }
}

impl dns::Message for Message<'_> {
    fn find(&self, end: usize, length: usize) -> Option<FoundName> {
        let suffix: Vec<u8> =
            self.bytes[end - length..end].iter().rev().map(u8::to_ascii_lowercase).collect();
        let entries = self.names.iter().map(EndpointName::raw);
        let matching =
            entries.filter(|(key, name)| suffix.starts_with(&key.data().reversed[..name.length as usize]));
        matching.max_by_key(|(_, name)| name.length).map(|(_, name)| FoundName::of(&name))
    }
}

fuzz_target!(|query: &[u8]| {
    let own = |name| EndpointName::own(name, WhenDown::Refuse);
    let names = [own("cwlota.com"), EndpointName::intercepted("s3.internal"), own("eu.s3.internal")];
    let Ok(names) = names.into_iter().collect::<Result<_, _>>().and_then(EndpointNames::new) else { return };
    let (_, access) = watch::channel(Arc::default());
    let Ok(responder) = Responder::new(&names, Ipv4Addr::new(169, 254, 77, 80), None, access) else { return };
    let answer = responder.answer(query, true);
    if let Some(answer) = &answer {
        assert_eq!(answer[..2], query[..2], "an answer to another query");
        assert!(answer[2] & 0x80 != 0, "a response without the QR bit");
        assert!(
            responder.answer(answer, true).is_none(),
            "an answer that is answered: two could talk for ever"
        );
    }
    let message = Message { bytes: query, names: &names };
    if let (Some(_), Some(answer)) = (dns::query(&message, &settings()), answer) {
        assert_eq!(answer[3] & 0x0f, 0, "the kernel side answers what the responder refuses");
    }
});

fn settings() -> Settings {
    Settings {
        vip4: [169, 254, 77, 80],
        vip6: [0; 16],
        ports: [80, 0, 0, 0, 0, 0, 0, 0],
        dns_port: 53,
        peer_port: 0,
        admin_port: 0,
        longest_name: u8::try_from(MAX_NAME).unwrap_or_default(),
        answer_dns: 1,
        default_allow: 0,
        lookups: 0,
        targets: 0,
        epoch: 1,
    }
}
