//! One daemon follows another.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use lota_tests::{
    lab::{Mode, Pod, Style, VIP, run},
    tour::{Tour, wait_until},
};

use super::lota;

const RESTARTS: usize = 10;
/// Connections from a pod of the node that is restarted, and as many through another node that asks it.
const BUSY: u32 = 25;

/// Nothing fails: no request of a client that tries once, no name query, no command.
pub(crate) fn restarts(tour: &mut Tour) -> Result<()> {
    let (here, there) = (tour.pod(1, 1), tour.pod(2, 1));
    let client = tour.client.clone();
    client.put_and_hit(&here, "busy/object", 10)?;
    let enough = tour.lab.folder().join("enough");
    let _ = fs::remove_file(&enough);
    let names = AtomicBool::new(true);
    let node = &mut tour.nodes[0];
    let mut times = Vec::new();
    let (reads, asked) = thread::scope(|scope| -> Result<_> {
        let busy = [&here, &there].map(|pod| {
            let (client, enough) = (&client, &enough);
            scope.spawn(move || client.busy(pod, "busy/object", BUSY, enough))
        });
        let asking = scope.spawn(|| -> Result<(u32, Duration)> {
            let (mut asked, mut slowest) = (0, Duration::ZERO);
            while names.load(Ordering::Relaxed) {
                let started = Instant::now();
                // Over TCP: a lost datagram would be asked again.
                let found = run(here.pod_command("dig").args([
                    "+tcp",
                    "+short",
                    "+tries=1",
                    "+time=15",
                    "x.cwlota.com",
                ]))?;
                ensure!(found.trim() == VIP.to_string(), "a name query was answered {found:?}");
                (asked, slowest) = (asked + 1, slowest.max(started.elapsed()));
            }
            Ok((asked, slowest))
        });
        thread::sleep(Duration::from_secs(3));
        let mut restarted = Ok(());
        for _ in 0..RESTARTS {
            let started = Instant::now();
            let before = node.pid();
            restarted = node.start().and_then(|()| {
                ensure!(node.pid() != before, "it is the same process");
                lota(node, &["datapath", "status"]).map(|_| ())
            });
            if restarted.is_err() {
                break;
            }
            times.push(started.elapsed());
            thread::sleep(Duration::from_millis(500));
        }
        names.store(false, Ordering::Relaxed);
        fs::write(&enough, "")?;
        let mut reads = 0;
        for busy in busy {
            let (done, failures) = busy.join().map_err(|_| anyhow!("the busy client panicked"))??;
            ensure!(failures.is_empty(), "after {done} reads: {failures}");
            reads += done;
        }
        let asked = asking.join().map_err(|_| anyhow!("the asking client panicked"))??;
        restarted.map(|()| (reads, asked))
    })?;
    let longest = times.iter().max().copied().unwrap_or_default();
    let (asked, slowest) = asked;
    println!(
        "    {RESTARTS} restarts of {longest:.1?} at most, {reads} reads and {asked} names (the slowest in \
         {slowest:.1?}), no failure"
    );
    ensure!(reads > 500 && asked > 10, "only {reads} reads and {asked} names: nobody was busy");
    // What the last one serves is what the first one had cached.
    let got = client.get(&here, "busy/object-0", Style::Path)?;
    ensure!(got.cache() == "hit", "{} {}", got.status, got.cache());
    Ok(())
}

/// It takes everything over, and then cannot open its cache.
pub(crate) fn failed(tour: &mut Tour) -> Result<()> {
    let node = &mut tour.nodes[0];
    let pid = node.pid();
    fs::write(node.folder().join("no-folder"), "")?;
    node.edit("/cache\"\n", "/no-folder\"\n");
    node.configure(Mode::OwnCredential)?;
    let failed = node.start();
    node.forget_edits();
    node.configure(Mode::OwnCredential)?;
    ensure!(failed.is_err_and(|error| format!("{error:#}").contains("no-folder")), "it should have failed");
    ensure!(node.pid() == pid, "the first one is gone");
    ensure!(node.admin("/readyz")?.starts_with("ready"), "the first one is not ready");
    let pod = tour.lab.pod(Pod(1, 1));
    tour.client.put_and_hit(&pod, "failed/object", 1)?;
    tour.nodes[0].start()?;
    ensure!(tour.nodes[0].pid() != pid, "the next one did not take over");
    let got = tour.client.get(&pod, "failed/object-0", Style::Path)?;
    ensure!(got.cache() == "hit", "{} {}", got.status, got.cache());
    Ok(())
}

/// It takes over and is killed, while the first one still finishes with a client: the next must find nothing locked.
pub(crate) fn killed(tour: &mut Tour) -> Result<()> {
    let pod = tour.lab.pod(Pod(1, 1));
    let client = pod.run(|| TcpStream::connect((VIP, 80)))??;
    let node = &mut tour.nodes[0];
    let log = fs::File::options().append(true).open(node.log())?;
    let mut second = node.command().args(["run", "--config"]).arg(node.config()).stderr(log).spawn()?;
    let serves = format!("pid={}\n", second.id());
    let taken = wait_until("the second daemon to serve", || Ok(node.admin("/readyz")?.contains(&serves)));
    second.kill()?;
    second.wait()?;
    taken?;
    ensure!(
        node.pid().is_some_and(|pid| fs::exists(format!("/proc/{pid}")).unwrap_or(false)),
        "the first is gone"
    );
    let held = thread::spawn(move || {
        thread::sleep(Duration::from_secs(5));
        drop(client);
    });
    node.start()?;
    held.join().map_err(|_| anyhow!("the client panicked"))?;
    tour.client.put_and_hit(&pod, "killed/object", 1)
}

/// Whoever asks in another way, or is another user, gets nothing; and the daemon goes on.
pub(crate) fn stranger(tour: &mut Tour) -> Result<()> {
    let node = &tour.nodes[0];
    let socket: PathBuf = node.folder().join("admin.handover");
    let mut stream = UnixStream::connect(&socket).context("connecting as root")?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET / HTT")?;
    let answer = stream.read(&mut [0; 100]).map_err(|error| error.kind());
    ensure!(matches!(answer, Ok(0) | Err(std::io::ErrorKind::ConnectionReset)), "it answered: {answer:?}");
    let output = std::process::Command::new("setpriv")
        .args(["--reuid=65534", "--clear-groups", "--", "/usr/bin/python3", "-c"])
        .arg(format!("import socket; socket.socket(socket.AF_UNIX).connect('{}')", socket.display()))
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(said.contains("PermissionError"), "another user could connect: {said}");
    ensure!(node.admin("/readyz")?.starts_with("ready"), "the daemon suffered");
    lota(node, &["datapath", "status"]).map(|_| ())
}
