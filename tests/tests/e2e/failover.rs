//! The owner of an object fails or hangs during a response.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use hyper::Method;
use lota_tests::{
    lab::{
        ADMIN, VIP,
        raw::{Request, Signing, content},
    },
    tour::Tour,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const SIZE: usize = 64 << 20;

pub(crate) fn killed(tour: &mut Tour) -> Result<()> {
    in_the_middle(tour, "killed", |tour, owner| tour.nodes[owner].stop(Signal::SIGKILL))?;
    tour.revive()
}

pub(crate) fn hanging(tour: &mut Tour) -> Result<()> {
    let mut stopped = None;
    let read = in_the_middle(tour, "hanging", |tour, owner| {
        let pid = tour.nodes[owner].pid().context("the owner does not run")?;
        let pid = Pid::from_raw(pid.cast_signed());
        stopped = Some(pid);
        Ok(kill(pid, Signal::SIGSTOP)?)
    });
    if let Some(pid) = stopped {
        kill(pid, Signal::SIGCONT)?;
    }
    let took = read?;
    ensure!(took < Duration::from_secs(30), "the client waited {took:?} for an owner that hangs");
    Ok(())
}

/// Reads a cached object from another node than its owner, and calls `strikes` after the first bytes. The rest must
/// arrive nevertheless. Returns how long it took.
fn in_the_middle(
    tour: &mut Tour,
    key: &str,
    strikes: impl FnOnce(&mut Tour, usize) -> Result<()>,
) -> Result<Duration> {
    let key = format!("failover/{key}");
    let target = format!("/{}", tour.client.name(&key));
    let put = Request::new(Method::PUT, "cwlota.com", &target).body(content(SIZE));
    let put = put.sign(&ADMIN, Signing::Header)?;
    let get = Request::new(Method::GET, "cwlota.com", &target).sign(&ADMIN, Signing::Presigned)?;
    for request in [put, get.clone()] {
        let reply = tour.pod(1, 1).send_all((VIP, 80).into(), vec![request])?.pop().context("no answer")?;
        ensure!(reply.status.is_success(), "answered {} {}", reply.status, reply.code());
    }
    let owner = tour.wait_cached(&key)?;
    let owner = tour.nodes.iter().position(|node| node.name() == owner).context("no such node")?;
    let reader = tour.pod(u8::try_from((owner + 1) % tour.nodes.len() + 1)?, 1);
    let (started, first) = std::sync::mpsc::channel();
    let (go, goes) = std::sync::mpsc::channel::<()>();
    let request = format!("GET {} HTTP/1.1\r\nhost: cwlota.com\r\nconnection: close\r\n\r\n", get.target);
    let reading = std::thread::spawn(move || -> Result<Vec<u8>> {
        reader.run(move || {
            let mut stream =
                TcpStream::connect_timeout(&SocketAddr::from((VIP, 80)), Duration::from_secs(2))?;
            stream.set_read_timeout(Some(Duration::from_secs(40)))?;
            stream.write_all(request.as_bytes())?;
            let mut answer = vec![0; 1 << 20];
            stream.read_exact(&mut answer)?;
            started.send(())?;
            goes.recv()?;
            stream.read_to_end(&mut answer)?;
            Ok(answer)
        })?
    });
    let begun = first.recv_timeout(Duration::from_secs(20)).context("no first bytes");
    let struck = begun.and_then(|()| strikes(tour, owner));
    let since = Instant::now();
    let _ = go.send(());
    let answer = reading.join().map_err(|_| anyhow!("the reader panicked"))?;
    struck?;
    let answer = answer?;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").context("no head")? + 4;
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    let from = format!("lota-cache: hit; node=n{}", owner + 1);
    ensure!(head.contains(&from), "not a remote hit: {head}");
    let body = &answer[end..];
    ensure!(body.len() == SIZE, "{} of {SIZE} bytes came", body.len());
    ensure!(*body == content(SIZE), "other bytes than the object's");
    Ok(since.elapsed())
}
