use std::{future::poll_fn, net::Ipv4Addr};

use super::*;

/// Length of a large response: more than is written here.
const ENDLESS: usize = usize::MAX / 2;

fn pod(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, last).into()
}

/// Lets connections write in turns, each until its turn ends or `socket` bytes are written, and returns the bytes of each.
async fn write_in_turns(connections: &mut [ConnectionPace], socket: usize, rounds: usize) -> Vec<usize> {
    let mut all = vec![0; connections.len()];
    for _ in 0..rounds {
        for (pace, all) in connections.iter_mut().zip(&mut all) {
            let mut room = socket;
            while room > 0 {
                let Poll::Ready(turn) = poll_fn(|cx| Poll::Ready(pace.poll_turn(cx, ENDLESS))).await else {
                    break;
                };
                let written = turn.min(room);
                pace.written(turn, written);
                (*all, room) = (*all + written, room - written);
            }
            if room == 0 {
                // The socket takes no more.
                pace.written(0, 0);
            }
        }
    }
    all
}

#[tokio::test(start_paused = true)]
async fn a_pod_with_64_connections_gets_no_more_than_one_with_one() {
    let node = PodBandwidth::new(None);
    let mut connections: Vec<ConnectionPace> =
        (0..64).map(|_| node.pace(pod(1))).chain([node.pace(pod(2))]).collect();
    // The first round begins before all connections are counted.
    write_in_turns(&mut connections, 1 << 20, 1).await;
    tokio::time::sleep(PERIOD).await;
    write_in_turns(&mut connections, 1 << 20, 1).await;
    let written = write_in_turns(&mut connections, 3 << 20, 100).await;
    let (many, one): (usize, usize) = (written[..64].iter().sum(), written[64]);
    assert!(one * 2 > many, "{many} and {one}");
    assert!(written[..64].iter().all(|bytes| bytes.abs_diff(written[0]) <= SHARE / 64), "{written:?}");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_receives_alone_is_not_limited() {
    let node = PodBandwidth::new(None);
    let (mut one, mut other) = (node.pace(pod(1)), node.pace(pod(2)));
    let small = poll_fn(|cx| other.poll_turn(cx, LARGE - 1)).await;
    assert_eq!(small, LARGE - 1, "small responses do not count");
    assert_eq!(poll_fn(|cx| one.poll_turn(cx, ENDLESS)).await, ENDLESS);
    assert_eq!(poll_fn(|cx| other.poll_turn(cx, ENDLESS)).await, SHARE);
    tokio::time::sleep(PERIOD).await;
    assert_eq!(poll_fn(|cx| one.poll_turn(cx, ENDLESS)).await, SHARE, "the other may only pause");
    tokio::time::sleep(2 * PERIOD).await;
    assert_eq!(poll_fn(|cx| one.poll_turn(cx, ENDLESS)).await, ENDLESS, "the other has received everything");
}

#[tokio::test(start_paused = true)]
async fn no_pod_receives_more_than_its_limit() {
    const LIMIT: usize = 50 << 20;
    for count in [1, 3, 40] {
        let node = PodBandwidth::new(Some(LIMIT as u64));
        let mut connections: Vec<ConnectionPace> = (0..count).map(|_| node.pace(pod(1))).collect();
        let (began, mut all) = (Instant::now(), 0);
        while began.elapsed() < Duration::from_secs(3) {
            for pace in &mut connections {
                let turn = poll_fn(|cx| pace.poll_turn(cx, ENDLESS)).await;
                // Some sockets take only a part.
                let written = if count == 3 { turn / 3 } else { turn };
                pace.written(turn, written);
                all += written;
            }
        }
        let ratio = all as f64 / (LIMIT as f64 * began.elapsed().as_secs_f64());
        assert!((0.97..=1.02).contains(&ratio), "{count} connections: {ratio}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_ended_connection_returns_what_it_waited_for_and_keeps_what_it_used() {
    let node = PodBandwidth::new(Some(1 << 20));
    let until = |node: &PodBandwidth| *node.0.all.lock()[&pod(1)].granted_until.lock();
    let mut first = node.pace(pod(1));
    tokio::time::sleep(SAVED).await;
    let turn = poll_fn(|cx| first.poll_turn(cx, ENDLESS)).await;
    first.written(turn, turn);
    let before = until(&node);
    let mut second = node.pace(pod(1));
    let waits = poll_fn(|cx| Poll::Ready(second.poll_turn(cx, ENDLESS))).await;
    assert!(waits.is_pending() && until(&node) > before);
    drop((first, second));
    let after = until(&node);
    assert!(after.max(before) - after.min(before) < Duration::from_micros(1), "{before:?} {after:?}");
    // A pod does not save bandwidth by closing its connections.
    drop(node.pace(pod(2)));
    assert_eq!(node.0.all.lock().contains_key(&pod(1)), after > Instant::now());
}
