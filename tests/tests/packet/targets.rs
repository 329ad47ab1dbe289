//! Interception by address: packets to a target are rewritten to its port of the VIP, and replies back.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lota_common::{FIRST_STAND_IN, Settings, Verdict, program};

use super::{
    cases::{Action, PEER, PEER_PORT, POD, STRANGER, VIP, settings},
    kernel::{Kernel, Ran},
    packets::{Packet, Transport},
};

const TARGET: Ipv4Addr = Ipv4Addr::new(10, 3, 0, 5);
/// The peer port of another node's address, and of another host.
const PORTS: [u16; 2] = [9000, PEER_PORT];
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

fn syn(port: u16) -> Transport {
    Transport::Tcp { port, flags: SYN }
}

/// Runs a test with targets, at an interface that intercepts.
fn with_targets(kernel: &mut Kernel, test: impl FnOnce(&mut Kernel) -> Result<()>) -> Result<()> {
    let targets = [(TARGET, PORTS[0]), (PEER, PORTS[0]), (TARGET, PORTS[1])];
    kernel.set_targets(&targets)?;
    kernel.set(Settings { targets: 3, lookups: 1, ..settings() })?;
    kernel.set_intercepts(true)?;
    let _listener = kernel.open_listener()?;
    kernel.set_heartbeat(Some(Duration::ZERO))?;
    let tested = test(kernel);
    kernel.set_heartbeat(None)?;
    kernel.set_intercepts(false)?;
    kernel.set_targets(&[])?;
    kernel.set(settings())?;
    tested
}

/// Returns source and destination of a TCP packet, whose checksums must be right.
fn ends(frame: &[u8]) -> Result<[(Ipv4Addr, u16); 2]> {
    let (ip, tcp) = (&frame[14..34], &frame[34..]);
    ensure!(sum(&[ip]) == 0xffff, "the IP header's checksum");
    let pseudo = [&ip[12..20], &[0, 6], &u16::try_from(tcp.len())?.to_be_bytes()].concat();
    ensure!(sum(&[&pseudo, tcp]) == 0xffff, "the checksum");
    let address = |at: usize| Ipv4Addr::new(ip[at], ip[at + 1], ip[at + 2], ip[at + 3]);
    let port = |at: usize| u16::from_be_bytes([tcp[at], tcp[at + 1]]);
    Ok([(address(12), port(0)), (address(16), port(2))])
}

/// Returns the sum of RFC 1071.
fn sum(parts: &[&[u8]]) -> u16 {
    parts.iter().flat_map(|part| part.chunks(2)).fold(0, |sum: u16, pair| {
        let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
        let (next, carry) = sum.overflowing_add(word);
        next + u16::from(carry)
    })
}

/// Returns the frame with right checksums.
fn summed(mut frame: Vec<u8>) -> Vec<u8> {
    let check = !sum(&[&frame[14..34]]);
    frame[24..26].copy_from_slice(&check.to_be_bytes());
    let length = u16::try_from(frame.len() - 34).unwrap_or_default().to_be_bytes();
    let pseudo = [&frame[26..34], &[0, 6], &length].concat();
    let check = !sum(&[&pseudo, &frame[34..]]);
    frame[50..52].copy_from_slice(&check.to_be_bytes());
    frame
}

fn untouched(kernel: &mut Kernel, packet: &[u8], verdict: Verdict) -> Result<()> {
    let Ran { action, verdict: counted, packet: after } = kernel.run(program::POD, packet)?;
    ensure!((action, counted) == (Action::Next, verdict), "{counted:?} and {action:?}");
    ensure!(after == packet, "the packet was changed");
    Ok(())
}

/// New connections of a pod with access are redirected while the daemon lives.
pub(crate) fn intercepted(kernel: &mut Kernel) -> Result<()> {
    with_targets(kernel, |kernel| {
        for (number, target) in [(0, (TARGET, PORTS[0])), (2, (TARGET, PORTS[1]))] {
            let packet = summed(Packet::v4(POD, target.0, syn(target.1)).bytes());
            let ran = kernel.run(program::POD, &packet)?;
            ensure!((ran.action, ran.verdict) == (Action::Pass, Verdict::Redirected), "{ran:?}");
            let [from, to] = ends(&ran.packet)?;
            ensure!(from == (POD, 40_000) && to == (VIP, FIRST_STAND_IN + number), "{from:?} to {to:?}");
            // The reply of the daemon comes from the target.
            let reply = Transport::Tcp { port: from.1, flags: SYN | ACK };
            let reply = summed(Packet::v4(VIP, POD, reply).with_source_port(to.1).bytes());
            let (action, restored) = kernel.run_uncounted(program::RESTORE, &reply)?;
            let [source, destination] = ends(&restored)?;
            ensure!(action == Action::Pass && source == target && destination == from, "{source:?}");
        }
        // A node's peer port is protected, whatever the targets are.
        let peer = Packet::v4(POD, PEER, syn(PEER_PORT)).bytes();
        kernel.expect(program::POD, &peer, Action::Drop, Verdict::Protected)
    })
}

/// All other packets continue unchanged.
pub(crate) fn others(kernel: &mut Kernel) -> Result<()> {
    with_targets(kernel, |kernel| {
        let target = |transport| Packet::v4(POD, TARGET, transport);
        let ours = target(syn(PORTS[0])).bytes();
        for (what, packet) in [
            ("another port", target(syn(PORTS[0] + 1))),
            ("another address", Packet::v4(POD, STRANGER, syn(PORTS[0]))),
            ("UDP", target(Transport::Udp { port: PORTS[0] })),
            ("a fragment", target(syn(PORTS[0])).fragment(0x2000)),
            ("no access", Packet::v4(STRANGER, TARGET, syn(PORTS[0]))),
            ("a connection that is not the daemon's", target(Transport::Tcp { port: PORTS[0], flags: ACK })),
            ("a SYN-ACK", target(Transport::Tcp { port: PORTS[0], flags: SYN | ACK })),
        ] {
            untouched(kernel, &packet.bytes(), Verdict::NotOurs).context(what)?;
        }
        kernel.set_heartbeat(Some(Duration::from_millis(3001)))?;
        untouched(kernel, &ours, Verdict::Bypassed).context("a stale heartbeat")?;
        kernel.set_heartbeat(Some(Duration::ZERO))?;
        kernel.set_intercepts(false)?;
        untouched(kernel, &ours, Verdict::NotOurs).context("an interface without a program at egress")?;
        kernel.set_intercepts(true)?;
        kernel.expect(program::POD, &ours, Action::Pass, Verdict::Redirected)?;
        // Ports that stand for targets are not for pods.
        let direct = Packet::v4(POD, VIP, syn(FIRST_STAND_IN)).bytes();
        kernel.expect(program::POD, &direct, Action::Drop, Verdict::Protected)?;
        let reply = |source, port| Packet::v4(source, POD, syn(40_000)).with_source_port(port);
        for (what, packet) in [
            ("a reply from another port of the VIP", reply(VIP, 80)),
            ("a reply from an unused port", reply(VIP, FIRST_STAND_IN + 3)),
            ("a packet of another host", reply(TARGET, FIRST_STAND_IN)),
            ("a fragment of a reply", reply(VIP, FIRST_STAND_IN).fragment(0x2000)),
        ] {
            let packet = packet.bytes();
            let (action, after) = kernel.run_uncounted(program::RESTORE, &packet)?;
            ensure!(action == Action::Next && after == packet, "{what}: {action:?}");
        }
        Ok(())
    })
}
