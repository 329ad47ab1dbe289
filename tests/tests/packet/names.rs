//! Name queries, and the answers that the datapath makes of them, as an implementation of DNS reads them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result, ensure};
use hickory_proto::{
    op::{Edns, Message, Query, ResponseCode},
    rr::{Name, RData, RecordType},
};
use lota_common::{Settings, Verdict, program};

use super::{
    cases::{Action, POD, POD6, STRANGER, VIP, VIP6, settings},
    kernel::Kernel,
    packets::{Packet, Transport},
};

const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const RESOLVER6: Ipv6Addr = Ipv6Addr::new(0xfd10, 96, 0, 0, 0, 0, 0, 10);

fn query(name: &str, kind: RecordType, edns: bool) -> Result<Message> {
    let mut message = Message::query();
    message.add_query(Query::query(Name::from_ascii(name)?, kind));
    message.metadata.recursion_desired = true;
    if edns {
        let mut edns = Edns::new();
        edns.set_max_payload(4096);
        // Longer than any answer's: what is left of it must not show.
        edns.options_mut().insert(hickory_proto::rr::rdata::opt::EdnsOption::Unknown(10, vec![7; 40]));
        message.edns = Some(edns);
    }
    Ok(message)
}

fn datagram(pod: IpAddr, message: &Message) -> Result<Vec<u8>> {
    let transport = Transport::Payload { port: 53, bytes: message.to_vec()? };
    Ok(match pod {
        IpAddr::V4(pod) => Packet::v4(pod, RESOLVER, transport),
        IpAddr::V6(pod) => Packet::v6(pod, RESOLVER6, transport),
    }
    .bytes())
}

/// What an allowed pod's query is answered with.
fn answered(kernel: &mut Kernel, pod: IpAddr, asked: &Message) -> Result<Message> {
    let packet = datagram(pod, asked)?;
    let ran = kernel.run(program::POD, &packet)?;
    ensure!((ran.action, ran.verdict) == (Action::Redirect, Verdict::Answered), "{ran:?}");
    let header = if pod.is_ipv4() { 20 } else { 40 };
    let (ip, rest) = (&ran.packet[14..14 + header], &ran.packet[14 + header..]);
    // Turned around: each address, port and MAC where the other was.
    ensure!(ran.packet[..12] == [&packet[6..12], &packet[..6]].concat(), "the MACs");
    ensure!(
        rest[..4] == [&packet[14 + header + 2..][..2], &packet[14 + header..][..2]].concat(),
        "the ports"
    );
    let length = usize::from(u16::from_be_bytes([rest[4], rest[5]]));
    ensure!(length == rest.len(), "the datagram says {length} bytes and has {}", rest.len());
    let (source, destination) = match pod {
        IpAddr::V4(_) => {
            ensure!(
                usize::from(u16::from_be_bytes([ip[2], ip[3]])) == ran.packet.len() - 14,
                "the IP length"
            );
            ensure!(sum(&[ip]) == 0xffff, "the IP header's checksum");
            (&ip[12..16], &ip[16..20])
        }
        IpAddr::V6(_) => {
            ensure!(usize::from(u16::from_be_bytes([ip[4], ip[5]])) == rest.len(), "the IP length");
            (&ip[8..24], &ip[24..40])
        }
    };
    let from = if pod.is_ipv4() { &packet[26..34] } else { &packet[22..54] };
    ensure!([destination, source].concat() == from, "the addresses");
    let pseudo = [&[0, 17], &rest[4..6]].concat();
    ensure!(sum(&[source, destination, &pseudo, rest]) == 0xffff, "the checksum");
    let message = Message::from_vec(&rest[8..]).context("the answer is no DNS message")?;
    ensure!(message.metadata.id == asked.metadata.id && message.queries == asked.queries, "the question");
    let metadata = &message.metadata;
    ensure!(metadata.response_code == ResponseCode::NoError && metadata.recursion_available, "{metadata:?}");
    ensure!(message.edns.is_some() == asked.edns.is_some(), "EDNS");
    ensure!(message.to_vec()?.len() <= length - 8, "something follows the message");
    Ok(message)
}

/// RFC 1071.
fn sum(parts: &[&[u8]]) -> u16 {
    let mut sum: u16 = 0;
    for part in parts {
        for pair in part.chunks(2) {
            let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
            let (next, carry) = sum.overflowing_add(word);
            sum = next + u16::from(carry);
        }
    }
    sum
}

/// Names of every length modulo four, in any case, with and without EDNS, from pods of both families.
pub(crate) fn addresses(kernel: &mut Kernel) -> Result<()> {
    for name in
        ["cwlota.com.", "b.cwlota.com.", "BuCkEt.CwLoTa.CoM.", "a.b.c.d.cwlota.com.", "x1.cwlota.com."]
    {
        for pod in [IpAddr::from(POD), IpAddr::from(POD6)] {
            for edns in [false, true] {
                let what = || format!("{name} from {pod}, EDNS {edns}");
                let asked = query(name, RecordType::A, edns)?;
                let answer = answered(kernel, pod, &asked).with_context(what)?;
                ensure!(
                    answer.answers.len() == 1 && answer.answers[0].data == RData::A(VIP.into()),
                    "{answer:?}"
                );
                ensure!(answer.queries[0].name().to_string() == name, "the case of the question is lost");
                let asked = query(name, RecordType::AAAA, edns)?;
                let answer = answered(kernel, pod, &asked).with_context(what)?;
                ensure!(answer.answers[0].data == RData::AAAA(VIP6.into()), "{answer:?}");
            }
        }
    }
    Ok(())
}

/// Other types are "no data", with the zone's SOA for how long; so is AAAA without an IPv6 VIP.
pub(crate) fn no_data(kernel: &mut Kernel) -> Result<()> {
    let check = |kernel: &mut Kernel, kind| -> Result<()> {
        for edns in [false, true] {
            let answer = answered(kernel, POD.into(), &query("b.cwlota.com.", kind, edns)?)?;
            ensure!(answer.answers.is_empty() && answer.authorities.len() == 1, "{kind}: {answer:?}");
            let soa = &answer.authorities[0];
            ensure!(soa.record_type() == RecordType::SOA && soa.name.to_string() == "cwlota.com.", "{soa}");
        }
        Ok(())
    };
    for kind in [RecordType::MX, RecordType::TXT, RecordType::HTTPS, RecordType::NS] {
        check(kernel, kind)?;
    }
    kernel.set(Settings { vip6: [0; 16], ..settings() })?;
    let checked = check(kernel, RecordType::AAAA);
    kernel.set(settings())?;
    checked
}

/// Everything else goes on to its resolver, not a bit of it changed.
pub(crate) fn others(kernel: &mut Kernel) -> Result<()> {
    let untouched = |kernel: &mut Kernel, packet: Vec<u8>, what: &str| -> Result<()> {
        let ran = kernel.run(program::POD, &packet)?;
        ensure!((ran.action, ran.verdict) == (Action::Next, Verdict::NotOurs), "{what}: {ran:?}");
        ensure!(ran.packet == packet, "{what}: the packet was changed");
        Ok(())
    };
    let ours = query("cwlota.com.", RecordType::A, true)?;
    for name in ["example.com.", "xcwlota.com.", "cwlota.com.example.", "com.", "."] {
        let packet = datagram(POD.into(), &query(name, RecordType::A, false)?)?;
        untouched(kernel, packet, name)?;
    }
    untouched(kernel, datagram(STRANGER.into(), &ours)?, "from a pod without access")?;
    let transport = Transport::Payload { port: 53, bytes: ours.to_vec()? };
    untouched(kernel, Packet::v4(POD, RESOLVER, transport.clone()).options(4).bytes(), "with IP options")?;
    untouched(kernel, Packet::v4(POD, RESOLVER, transport).fragment(0x2000).bytes(), "a fragment")?;
    let mut answer = ours.clone();
    answer.metadata.message_type = hickory_proto::op::MessageType::Response;
    untouched(kernel, datagram(POD.into(), &answer)?, "an answer")?;
    let mut two = ours.clone();
    two.add_query(Query::query(Name::from_ascii("cwlota.com.")?, RecordType::A));
    untouched(kernel, datagram(POD.into(), &two)?, "two questions")?;
    kernel.set(Settings { answer_names: 0, ..settings() })?;
    let off = untouched(kernel, datagram(POD.into(), &ours)?, "switched off");
    kernel.set(settings())?;
    off?;
    let whole = datagram(POD.into(), &ours)?;
    for length in 34..whole.len() {
        let ran = kernel.run(program::POD, &whole[..length])?;
        ensure!(ran.verdict != Verdict::Answered, "cut to {length} bytes, it was answered");
    }
    Ok(())
}
