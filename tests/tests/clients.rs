//! Unmodified S3 clients: through LOTA from a pod, each writes, reads, reads a range, and transfers a larger object
//! in parallel parts in both directions; then it reads everything again on another node. Without a credential of LOTA,
//! every read after the first must be a hit.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, ensure};
use hyper::Method;
use lota_tests::{
    lab::{
        ADMIN, Credential, GATEWAY, GATEWAY_PORT, Mode, Namespace, Node, POD_ONLY,
        raw::{Request, Signing, content},
        run,
    },
    suite::{Suite, lab_with},
    tool,
    tour::{Tour, wait_settled, wait_until},
};

#[path = "clients/ranges.rs"]
mod ranges;

/// The lab of this suite.
const NAME: &str = "lota-clients";
const BUCKET: &str = "clients";
const SMALL: usize = 3000;
/// Five parts of five mebibytes; the last one is shorter.
const BIG: usize = 24 << 20;

/// Way to run a client.
#[derive(Clone, Copy)]
enum How {
    /// A command line in `commands.sh`.
    Command,
    /// A library in `libraries.py`.
    Library,
    /// A table in `table.py`.
    Table,
}

const CLIENTS: [(&str, How); 10] = [
    ("aws", How::Command),
    ("boto3", How::Library),
    ("crt", How::Library),
    ("curl", How::Command),
    ("minio", How::Library),
    ("obstore", How::Library),
    ("pyarrow", How::Library),
    ("rclone", How::Command),
    ("s3cmd", How::Command),
    ("s5cmd", How::Command),
];
/// A client that signs and reads as `crt`, with the same C library: one mode is enough.
const AWSCRT: (&str, How) = ("awscrt", How::Library);

fn main() -> ExitCode {
    Suite::run(NAME, |suite| {
        for (mode, credential, suffix) in [
            (Mode::OwnCredential, ADMIN, ""),
            (Mode::ReSign, POD_ONLY, ", re-signed"),
            (Mode::ClientOnly, ADMIN, ", without a credential of LOTA"),
        ] {
            let test_of = |(name, how)| {
                let credential = credential.clone();
                let test =
                    move |tour: &mut Tour| Real { name, how, credential: &credential, mode }.test(tour);
                (format!("{name}{suffix}"), Box::new(test) as Box<_>)
            };
            let mut tests = Vec::from(CLIENTS.map(test_of));
            if mode == Mode::ClientOnly {
                tests.push(test_of(AWSCRT));
                tests.push(("a table of deltalake".to_owned(), Box::new(table) as Box<_>));
                tests.extend(ranges::TESTS.map(|(name, test)| (name.to_owned(), Box::new(test) as Box<_>)));
            }
            suite.in_lab(move || make(mode), tests);
        }
    })
}

/// A client and its credential.
struct Real<'a> {
    name: &'static str,
    how: How,
    credential: &'a Credential,
    mode: Mode,
}

fn make(mode: Mode) -> Result<Tour> {
    let mut tour = lab_with(NAME, "seaweedfs")?;
    tour.restart(mode)?;
    let made = at_gateway(&tour, Method::PUT, "")?;
    ensure!(made.0 == 200, "making the bucket was answered {}", made.0);
    fs::write(work(&tour).join("small.bin"), content(SMALL))?;
    fs::write(work(&tour).join("big.bin"), content(BIG))?;
    let settings = "[default]\ns3 =\n    multipart_threshold = 8MB\n    multipart_chunksize = 5MB\n    max_concurrent_requests = 4\n";
    fs::write(work(&tour).join("aws.cfg"), settings)?;
    if mode == Mode::ClientOnly {
        ranges::verify_gateway(&tour)?;
    }
    Ok(tour)
}

impl Real<'_> {
    fn test(&self, tour: &mut Tour) -> Result<()> {
        let name = self.name;
        self.run(tour, &tour.pod(1, 1), "up").context("writing")?;
        for (file, size) in [("small", SMALL), ("big", BIG)] {
            let (status, stored) = at_gateway(tour, Method::GET, &format!("/{name}-{file}"))?;
            ensure!(
                status == 200 && stored == content(size),
                "{file}: {status}, {} bytes at the gateway",
                stored.len()
            );
        }
        for (node, temperature) in [(1, "cold"), (2, "warm"), (3, "warm elsewhere")] {
            for file in ["small.out", "big.out", "range.out"] {
                let _ = fs::remove_file(work(tour).join(file));
            }
            let before = missed(tour)?;
            self.run(tour, &tour.pod(node, 1), "down").with_context(|| format!("reading {temperature}"))?;
            // The first hits of a client make nodes verify the gateway for its form of requests.
            if temperature == "warm elsewhere" && self.mode == Mode::ClientOnly {
                let missed = missed(tour)? - before;
                ensure!(missed == 0.0, "{temperature}: {missed} reads were not hits");
            }
            let read = |file| fs::read(work(tour).join(file));
            ensure!(read("small.out")? == content(SMALL), "{temperature}: other bytes of the small object");
            ensure!(read("big.out")? == content(BIG), "{temperature}: other bytes of the big object");
            // Not every client supports ranges.
            if let Ok(range) = read("range.out") {
                ensure!(range == content(SMALL)[100..200], "{temperature}: other bytes of the range");
            }
            wait_until("both objects to be cached", || {
                let mut cached = 0;
                for node in &tour.nodes {
                    let objects = node.cached()?;
                    let names = ["small", "big"].map(|file| format!("{BUCKET}/{name}-{file}"));
                    cached += names.iter().filter(|name| objects.contains_key(*name)).count();
                }
                Ok(cached >= 2)
            })?;
        }
        Ok(())
    }

    /// Runs the client in a pod.
    fn run(&self, tour: &Tour, pod: &Namespace, way: &str) -> Result<()> {
        let python = tool("LOTA_PYTHON")?;
        let (program, script, text) = match self.how {
            How::Command => (Path::new("sh"), "commands.sh", include_str!("clients/commands.sh")),
            How::Library => (&*python, "libraries.py", include_str!("clients/libraries.py")),
            How::Table => (&*python, "table.py", include_str!("clients/table.py")),
        };
        let (work, venv) = (work(tour), python.parent().context("cannot find python's folder")?);
        fs::write(work.join(script), text)?;
        let path = format!("{}:/usr/local/bin:/usr/bin:/bin", venv.display());
        let mut command = pod.pod_command("timeout");
        command.arg("120").arg(program).args([script, self.name, way]).current_dir(&work).env_clear();
        command.env("PATH", path).env("HOME", &work).env("BUCKET", BUCKET).env("LANG", "C.UTF-8");
        let Credential { access_key, secret_key } = self.credential;
        command.env("AWS_ACCESS_KEY_ID", &**access_key).env("AWS_SECRET_ACCESS_KEY", &**secret_key);
        command.env("AWS_REGION", "us-east-1").env("AWS_DEFAULT_REGION", "us-east-1");
        command.env("AWS_EC2_METADATA_DISABLED", "true").env("AWS_CONFIG_FILE", work.join("aws.cfg"));
        run(&mut command).map(|_| ())
    }
}

/// Verifies that a table's log and files are hits for every reader but the first, and its content the same.
fn table(tour: &mut Tour) -> Result<()> {
    let table = Real { name: "delta", how: How::Table, credential: &ADMIN, mode: Mode::ClientOnly };
    table.run(tour, &tour.pod(1, 1), "up").context("writing")?;
    wait_settled();
    for (node, is_hit) in [(1, false), (1, true), (3, true)] {
        let before = missed(tour)?;
        table.run(tour, &tour.pod(node, 1), "down").with_context(|| format!("reading on node {node}"))?;
        let missed = missed(tour)? - before;
        ensure!((missed == 0.0) == is_hit, "node {node}: {missed} reads were not hits");
    }
    Ok(())
}

/// Returns how many reads were not hits, on all nodes.
fn missed(tour: &Tour) -> Result<f64> {
    let of_node = |node: &Node| {
        let metrics = node.admin("/metrics")?;
        let misses = metrics.lines().filter(|line| {
            [
                "lota_requests_total{cache=\"miss\"",
                "lota_requests_total{cache=\"fill\"",
                "lota_uncached_total",
            ]
            .iter()
            .any(|prefix| line.starts_with(prefix))
        });
        Ok(misses.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>())
    };
    tour.nodes.iter().map(of_node).sum()
}

/// Sends a request to the gateway itself. Returns the status and the body.
fn at_gateway(tour: &Tour, method: Method, path: &str) -> Result<(u16, Vec<u8>)> {
    let request =
        Request::new(method, "cwlota.com", &format!("/{BUCKET}{path}")).sign(&ADMIN, Signing::Header)?;
    let address = SocketAddr::from((GATEWAY, GATEWAY_PORT));
    let reply = tour.lab.switch().send_all(address, vec![request])?.pop().context("no answer")?;
    Ok((reply.status.as_u16(), reply.body.to_vec()))
}

fn work(tour: &Tour) -> PathBuf {
    tour.lab.folder().to_owned()
}
