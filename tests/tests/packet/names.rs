//! DNS queries and the responses of the datapath, parsed by an independent implementation of DNS.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use anyhow::{Context as _, Error, Result, ensure};
use hickory_proto::{
    op::{Edns, Message, Query, ResponseCode},
    rr::{Name, RData, RecordType},
};
use lota_common::{MAX_NAMES, Settings, Verdict, program};
use lota_datapath::{EndpointName, NameKind, WhenDown};

use super::{
    cases::{Action, BANNED, ELSEWHERE, POD, POD6, RULED, STRANGER, STRANGER6, VIP, VIP6, settings},
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
        // Longer than any response, in which no rest of it may remain.
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

/// Returns the response to an allowed pod's query, and verifies its headers and checksums.
fn answered(kernel: &mut Kernel, pod: IpAddr, question: &Message) -> Result<Message> {
    answered_by(kernel, program::POD, pod, question)
}

/// Like [`answered`], with the response of this program.
fn answered_by(kernel: &mut Kernel, program: &str, pod: IpAddr, question: &Message) -> Result<Message> {
    let packet = datagram(pod, question)?;
    let ran = kernel.run(program, &packet)?;
    ensure!((ran.action, ran.verdict) == (Action::Redirect, Verdict::Answered), "{ran:?}");
    let header = if pod.is_ipv4() { 20 } else { 40 };
    let (ip, rest) = (&ran.packet[14..14 + header], &ran.packet[14 + header..]);
    // Addresses, ports and MACs must be swapped.
    ensure!(ran.packet[..12] == [&packet[6..12], &packet[..6]].concat(), "the MACs");
    ensure!(
        rest[..4] == [&packet[14 + header + 2..][..2], &packet[14 + header..][..2]].concat(),
        "the ports"
    );
    let length = usize::from(u16::from_be_bytes([rest[4], rest[5]]));
    ensure!(length == rest.len(), "the datagram's length field is {length}, and it has {} bytes", rest.len());
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
    ensure!(
        message.metadata.id == question.metadata.id && message.queries == question.queries,
        "the question"
    );
    let metadata = &message.metadata;
    ensure!(metadata.response_code == ResponseCode::NoError && metadata.recursion_available, "{metadata:?}");
    ensure!(message.edns.is_some() == question.edns.is_some(), "EDNS");
    ensure!(message.to_vec()?.len() <= length - 8, "something follows the message");
    Ok(message)
}

/// Returns the sum of RFC 1071.
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

/// Names of every length modulo four, in mixed case, with and without EDNS, from pods of both families.
pub(crate) fn addresses(kernel: &mut Kernel) -> Result<()> {
    for name in
        ["cwlota.com.", "b.cwlota.com.", "BuCkEt.CwLoTa.CoM.", "a.b.c.d.cwlota.com.", "x1.cwlota.com."]
    {
        for pod in [IpAddr::from(POD), IpAddr::from(POD6)] {
            for edns in [false, true] {
                let what = || format!("{name} from {pod}, EDNS {edns}");
                let question = query(name, RecordType::A, edns)?;
                let answer = answered(kernel, pod, &question).with_context(what)?;
                ensure!(
                    answer.answers.len() == 1 && answer.answers[0].data == RData::A(VIP.into()),
                    "{answer:?}"
                );
                ensure!(answer.queries[0].name().to_string() == name, "the case of the question is lost");
                let question = query(name, RecordType::AAAA, edns)?;
                let answer = answered(kernel, pod, &question).with_context(what)?;
                ensure!(answer.answers[0].data == RData::AAAA(VIP6.into()), "{answer:?}");
            }
        }
    }
    Ok(())
}

/// Other types, and AAAA without an IPv6 VIP, return "no data" with the zone's SOA record.
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

/// All other packets continue unchanged.
pub(crate) fn others(kernel: &mut Kernel) -> Result<()> {
    let untouched = |kernel: &mut Kernel, packet: Vec<u8>, what: &str| {
        passed(kernel, &packet, Verdict::NotOurs).with_context(|| what.to_owned())
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
    kernel.set(Settings { answer_dns: 0, ..settings() })?;
    let off = untouched(kernel, datagram(POD.into(), &ours)?, "disabled");
    kernel.set(settings())?;
    off?;
    let whole = datagram(POD.into(), &ours)?;
    for length in 34..whole.len() {
        let ran = kernel.run(program::POD, &whole[..length])?;
        ensure!(ran.verdict != Verdict::Answered, "truncated to {length} bytes, it was answered");
    }
    Ok(())
}

/// At a bridge's port, where access is bound to the bridge.
pub(crate) fn at_bridge_port(kernel: &mut Kernel) -> Result<()> {
    let names = [own("cwlota.com", WhenDown::Refuse)?, intercepted("s3.internal")?];
    in_each_state(kernel, &names, |kernel, state| {
        for (name, is_answered) in [("b.cwlota.com.", true), ("s3.internal.", state == State::Lives)] {
            let message = query(name, RecordType::A, true)?;
            let others = [(STRANGER.into(), false), (STRANGER6.into(), false), (BANNED.into(), false)];
            let allowed = [POD.into(), POD6.into(), ELSEWHERE.into(), RULED.into()]
                .map(|pod: IpAddr| (pod, is_answered));
            for (pod, is_answered) in others.into_iter().chain(allowed) {
                if is_answered {
                    let answer = answered_by(kernel, program::PORT, pod, &message);
                    let answer = answer.with_context(|| format!("{name} from {pod}"))?;
                    ensure!(
                        answer.answers.len() == 1 && answer.answers[0].data == RData::A(VIP.into()),
                        "{answer:?}"
                    );
                } else {
                    let packet = datagram(pod, &message)?;
                    let (action, after) = kernel.run_uncounted(program::PORT, &packet)?;
                    ensure!(action == Action::Next && after == packet, "{name} from {pod}: {action:?}");
                }
            }
        }
        Ok(())
    })
}

/// Verifies that a packet continues unchanged.
fn passed(kernel: &mut Kernel, packet: &[u8], verdict: Verdict) -> Result<()> {
    let ran = kernel.run(program::POD, packet)?;
    ensure!((ran.action, ran.verdict) == (Action::Next, verdict), "{ran:?}");
    ensure!(ran.packet == packet, "the packet was changed");
    Ok(())
}

/// State of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Lives,
    /// It wrote its last heartbeat too long ago.
    Stale,
    /// It never wrote one, or is about to end.
    Silent,
    /// It has no listener.
    Dead,
}

/// Runs a test with these names, with the daemon in each state.
fn in_each_state(
    kernel: &mut Kernel,
    names: &[EndpointName],
    mut test: impl FnMut(&mut Kernel, State) -> Result<()>,
) -> Result<()> {
    kernel.set_names(names)?;
    let tested = [State::Lives, State::Stale, State::Silent, State::Dead].into_iter().try_for_each(|state| {
        let listener = kernel.open_listener()?;
        kernel.set_heartbeat(match state {
            State::Lives | State::Dead => Some(Duration::ZERO),
            State::Stale => Some(Duration::from_millis(3001)),
            State::Silent => None,
        })?;
        let _open = (state != State::Dead).then_some(listener);
        test(kernel, state).with_context(|| format!("{state:?}"))
    });
    kernel.set_heartbeat(None)?;
    kernel.set_names(&[own("cwlota.com", WhenDown::Refuse)?])?;
    tested
}

fn own(name: &str, when_down: WhenDown) -> Result<EndpointName> {
    EndpointName::own(name, when_down).map_err(Error::msg)
}

fn intercepted(name: &str) -> Result<EndpointName> {
    EndpointName::intercepted(name).map_err(Error::msg)
}

/// Each kind of name, in each state of the daemon, from pods with and without access.
pub(crate) fn kinds(kernel: &mut Kernel) -> Result<()> {
    let names = [
        own("cwlota.com", WhenDown::Refuse)?,
        own("up.test", WhenDown::ClusterDns)?,
        intercepted("s3.internal")?,
    ];
    in_each_state(kernel, &names, |kernel, state| {
        for name in &names {
            for question in [format!("{name}."), format!("Bucket.{name}.").to_uppercase()] {
                let ttl = if name.when_down() == WhenDown::Refuse { 60 } else { 1 };
                let is_answered = state == State::Lives || name.when_down() == WhenDown::Refuse;
                for kind in [RecordType::A, RecordType::AAAA, RecordType::HTTPS, RecordType::TXT] {
                    let what = || format!("{question} {kind}");
                    let message = query(&question, kind, true)?;
                    for stranger in [IpAddr::from(STRANGER), STRANGER6.into(), ELSEWHERE.into()] {
                        passed(kernel, &datagram(stranger, &message)?, Verdict::NotOurs)
                            .with_context(|| format!("{} from {stranger}", what()))?;
                    }
                    for pod in [IpAddr::from(POD), POD6.into()] {
                        if name.kind() == NameKind::Intercepted && kind == RecordType::TXT {
                            passed(kernel, &datagram(pod, &message)?, Verdict::NotOurs).with_context(what)?;
                        } else if is_answered {
                            let answer = answered(kernel, pod, &message).with_context(what)?;
                            let record = answer.answers.first().or_else(|| answer.authorities.first());
                            let record = record.with_context(what)?;
                            let is_address = matches!(kind, RecordType::A | RecordType::AAAA);
                            ensure!(
                                record.ttl == ttl && is_address != answer.answers.is_empty(),
                                "{answer:?}"
                            );
                        } else {
                            passed(kernel, &datagram(pod, &message)?, Verdict::Bypassed)
                                .with_context(what)?;
                        }
                    }
                }
            }
        }
        Ok(())
    })
}

/// Without an IPv6 VIP, queries for the gateway's names over IPv6 are left alone, and AAAA has no data over IPv4.
pub(crate) fn families(kernel: &mut Kernel) -> Result<()> {
    kernel.set(Settings { vip6: [0; 16], ..settings() })?;
    let tested = in_each_state(kernel, &[intercepted("s3.internal")?], |kernel, state| {
        for kind in [RecordType::A, RecordType::AAAA] {
            let message = query("b.s3.internal.", kind, false)?;
            passed(kernel, &datagram(POD6.into(), &message)?, Verdict::NotOurs)?;
            if state == State::Lives {
                let answer = answered(kernel, POD.into(), &message)?;
                ensure!(answer.answers.is_empty() == (kind == RecordType::AAAA), "{answer:?}");
            }
        }
        Ok(())
    });
    kernel.set(settings())?;
    tested
}

/// Verifies the maximum number of names, of both kinds, of which many are a suffix of another name or of another label.
pub(crate) fn many(kernel: &mut Kernel) -> Result<()> {
    let mut texts: Vec<String> = ["internal", "s3.internal", "eu.s3.internal", "xs3.internal", "a.b.c.d.e"]
        .map(str::to_owned)
        .to_vec();
    texts.push(format!("{0}.{0}", "long-name".repeat(6)));
    // The length of its label is the character `-`.
    texts.push(format!("{}.test", "l".repeat(45)));
    texts.push(format!("{0}.{0}", "x".repeat(62)) + "y");
    while texts.len() < MAX_NAMES {
        let number = texts.len();
        let labels = ["n", "nn", "s3", "zone"].iter().cycle().skip(number).take(1 + number % 5);
        texts.push(format!("{}.{number}.test", labels.copied().collect::<Vec<_>>().join(".")));
    }
    let named = |(index, text): (usize, &String)| match index % 2 {
        0 => own(text, WhenDown::Refuse),
        _ => intercepted(text),
    };
    let names = texts.iter().enumerate().map(named).collect::<Result<Vec<_>>>()?;
    in_each_state(kernel, &names, |kernel, state| {
        for text in &texts {
            let (first, rest) = text.split_once('.').unwrap_or((text, ""));
            for question in [
                text.clone(),
                text.to_uppercase(),
                format!("b.{text}"),
                format!("a.b-1.{text}"),
                format!("x{text}"),
                format!("x-{text}"),
                format!("{text}.x"),
                format!("{first}x.{rest}"),
                format!("b.{rest}"),
                rest.to_owned(),
            ] {
                // A label is at most 63 characters long.
                let Ok(message) = query(&format!("{question}."), RecordType::A, false) else { continue };
                let packet = datagram(POD.into(), &message)?;
                match longest(&names, &question).map(EndpointName::kind) {
                    Some(NameKind::Intercepted) if state != State::Lives => {
                        passed(kernel, &packet, Verdict::Bypassed)
                    }
                    Some(_) => answered(kernel, POD.into(), &message).and_then(|answer| {
                        ensure!(answer.answers[0].data == RData::A(VIP.into()), "{answer:?}");
                        Ok(())
                    }),
                    None => passed(kernel, &packet, Verdict::NotOurs),
                }
                .with_context(|| format!("{question:?}, of {:?}", longest(&names, &question)))?;
            }
        }
        Ok(())
    })
}

/// Returns the longest name that covers the question, compared label by label: the reference implementation.
fn longest<'a>(names: &'a [EndpointName], question: &str) -> Option<&'a EndpointName> {
    let question: Vec<String> = question.split('.').rev().map(str::to_lowercase).collect();
    let covers = |name: &&EndpointName| {
        let labels: Vec<&str> = name.as_str().split('.').rev().collect();
        labels.len() <= question.len() && labels.iter().zip(&question).all(|(ours, theirs)| ours == theirs)
    };
    names.iter().filter(covers).max_by_key(|name| name.as_str().len())
}
