//! The status page of a node in the lab, in a real browser. Saves pictures in `target/page`.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lota_tests::{
    lab::{ADMIN_PORT, DENIED, Mode, Pod, Style, VIP, knock, node_address},
    suite::{Suite, TestFn, lab_with, tests},
    tool,
    tour::{MIB, Tour, wait_until},
};
use nix::sys::signal::Signal;

#[path = "page/dom.rs"]
mod dom;

use dom::Element;

/// The lab of this suite.
const NAME: &str = "lota-page";
/// Markup in a folder's name.
const MARKUP: &str = "<img id=foreign src=x>&amp;";
/// Virtual time for the page before it is captured: enough for a few of its requests.
const BUDGET: &str = "--virtual-time-budget=9000";
const QUIET: [&str; 12] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--v=0",
    BUDGET,
];

fn main() -> ExitCode {
    Suite::run(NAME, |suite| {
        let table: [(&str, TestFn); 4] = [
            ("a healthy node", healthy),
            ("refused addresses", refused),
            ("markup in names is shown as text", markup),
            ("an unreachable gateway", gone),
        ];
        suite.in_lab(|| lab_with(NAME, "embedded"), tests(&table));
    })
}

/// Loads a node's page, and returns its document or a picture.
struct Browser<'a> {
    tour: &'a Tour,
    node: u8,
}

impl Browser<'_> {
    fn run(&self, arguments: &[&str]) -> Result<String> {
        let profile = self.tour.lab.folder().join("browser");
        let _ = fs::remove_dir_all(&profile);
        let mut command = self.tour.lab.node(self.node).command("timeout");
        command.arg("60").arg(tool("LOTA_BROWSER")?).args(QUIET).args(arguments);
        command.arg(format!("--user-data-dir={}", profile.display())).env("HOME", &profile);
        command.arg(format!("http://{}/", SocketAddr::from((node_address(self.node), ADMIN_PORT))));
        let output = command.output().with_context(|| format!("running {command:?}"))?;
        let log = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{command:?}: {}\n{log}", output.status);
        // The browser's console is in its log.
        let violation = log.lines().find(|line| line.contains("Content Security Policy"));
        ensure!(violation.is_none(), "the page violates its own policy: {}", violation.unwrap_or_default());
        Ok(String::from_utf8(output.stdout)?)
    }

    fn document(&self) -> Result<Element> {
        Ok(Element::parse(&self.run(&["--dump-dom"])?))
    }

    fn picture(&self, name: &str, size: (u32, u32), more: &[&str]) -> Result<Vec<u8>> {
        let folder = target().join("page");
        fs::create_dir_all(&folder)?;
        let path = folder.join(name);
        let _ = fs::remove_file(&path);
        let (shot, window) =
            (format!("--screenshot={}", path.display()), format!("--window-size={},{}", size.0, size.1));
        self.run(&[&[&*shot, &window], more].concat())?;
        let png = fs::read(&path).with_context(|| format!("no picture {}", path.display()))?;
        ensure!(dimensions(&png) == Some(size), "{} is no picture of {size:?}", path.display());
        Ok(png)
    }
}

/// Returns cargo's target folder.
fn target() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap_or(Path::new(".")).to_owned()
}

/// Returns the level, the name, and the text of each part.
fn parts(document: &Element) -> Result<Vec<[&str; 3]>> {
    let parts = document.id("parts")?.children.iter();
    let texts = parts.map(|part| part.children.iter().map(|child| &*child.text).collect::<Vec<_>>());
    texts.map(|texts| texts.try_into().map_err(|texts| anyhow::anyhow!("not a part: {texts:?}"))).collect()
}

/// Returns the width and height that a PNG states (RFC 2083, section 4.1.1).
fn dimensions(png: &[u8]) -> Option<(u32, u32)> {
    let header = png.strip_prefix(b"\x89PNG\r\n\x1a\n")?.get(8..16)?;
    let (width, height) = header.split_at(4);
    Some((u32::from_be_bytes(width.try_into().ok()?), u32::from_be_bytes(height.try_into().ok()?)))
}

fn healthy(tour: &mut Tour) -> Result<()> {
    let (client, pod) = (tour.client.clone(), tour.pod(1, 1));
    client.create_bucket(&pod)?;
    client.put(&pod, "page", 51, MIB)?;
    wait_until("a hit", || Ok(client.get(&pod, "page", Style::Path)?.cache() == "hit"))?;
    // Traffic while the page is captured.
    let until = tour.lab.folder().join("until");
    client.put_and_hit(&pod, "busy", 10)?;
    let (busy, stop) = (client.clone(), until.clone());
    let busy = std::thread::spawn(move || busy.busy(&pod, "busy", 2, &stop));
    let browser = Browser { tour, node: 1 };
    let looked = browser.document().and_then(|document| {
        let light = browser.picture("wide.png", (1280, 1500), &[])?;
        browser.picture("narrow.png", (400, 2600), &[])?;
        let dark = browser.picture("dark.png", (1280, 1500), &["--blink-settings=preferredColorScheme=0"])?;
        ensure!(light != dark, "the dark picture is the light one");
        Ok(document)
    });
    fs::write(&until, "")?;
    busy.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
    let document = looked?;
    ensure!(document.tags("title")[0].text == "n1 – LOTA", "{}", document.tags("title")[0].text);
    ensure!(document.id("state")?.text == "healthy", "{}", document.id("state")?.text);
    ensure!(parts(&document)?.iter().all(|[level, ..]| *level == "ok"), "{:?}", parts(&document)?);
    for class in ["warn", "fail"] {
        let marked: Vec<_> = document.of_class(class).iter().map(|element| &element.text).collect();
        ensure!(marked.is_empty(), "marked as {class}: {marked:?}");
    }
    let nodes = document.rows("nodes")?;
    ensure!(nodes.len() == 3 && nodes[0][..2] == ["n1 (this one)", "ready"], "{nodes:?}");
    ensure!(nodes[1..].iter().all(|node| node[1] == "alive"), "{nodes:?}");
    let interfaces = document.rows("interfaces")?;
    ensure!(interfaces.iter().any(|row| row[0] == "veth-p1" && row[1] != "no"), "{interfaces:?}");
    // The client may use either address family.
    let addresses = [Pod(1, 1).address().to_string(), Pod(1, 1).address6().to_string()];
    let pods = document.rows("pods")?;
    ensure!(pods.iter().any(|row| addresses.iter().any(|address| row[0] == address)), "{pods:?}");
    let meters: Vec<_> = document.id("disks")?.tags("meter");
    ensure!(meters.len() == 1 && meters[0].attributes["value"] != "0", "{} disks", meters.len());
    // A gap in the data begins another line.
    let lines = document.id("chart")?.of_class("local").into_iter();
    let points = lines.filter_map(|line| line.attributes.get("points")).max_by_key(|points| points.len());
    let points = points.context("no line of local traffic")?;
    ensure!(points.split_whitespace().count() > 2, "a line without points: {points}");
    Ok(())
}

fn refused(tour: &mut Tour) -> Result<()> {
    knock(&tour.lab.pod(DENIED), VIP, 80)?;
    let browser = Browser { tour, node: DENIED.0 };
    let document = browser.document()?;
    let (denied, address) = (document.rows("denied")?, DENIED.address().to_string());
    ensure!(denied.iter().any(|row| row[0] == address && row[3] == DENIED.interface()), "{denied:?}");
    ensure!(
        document.id("nobody")?.attributes.contains_key("hidden"),
        "it also shows the text for no refusals"
    );
    browser.picture("refused.png", (1280, 1500), &[]).map(|_| ())
}

fn markup(tour: &mut Tour) -> Result<()> {
    let node = &mut tour.nodes[1];
    node.stop(Signal::SIGTERM)?;
    node.edit("/cache\"", &format!("/{MARKUP}\""));
    node.configure(Mode::OwnCredential)?;
    node.forget_edits();
    node.start()?;
    let document = Browser { tour, node: 2 }.document()?;
    let node = &mut tour.nodes[1];
    node.stop(Signal::SIGTERM)?;
    node.configure(Mode::OwnCredential)?;
    node.start()?;
    let disks = document.rows("disks")?;
    ensure!(disks.len() == 1 && disks[0][0].ends_with(&format!("/{MARKUP}")), "{disks:?}");
    ensure!(document.tags("img").is_empty() && document.id("foreign").is_err(), "markup was interpreted");
    Ok(())
}

fn gone(tour: &mut Tour) -> Result<()> {
    let switch = tour.lab.switch();
    switch.ip("addr del 10.77.0.100/24 dev br0")?;
    let browser = Browser { tour, node: 1 };
    let began = Instant::now();
    let document = browser.document().and_then(|document| {
        browser.picture("failing.png", (1280, 1500), &[])?;
        Ok(document)
    });
    switch.ip("addr add 10.77.0.100/24 dev br0")?;
    ensure!(began.elapsed() < Duration::from_secs(60), "it took {:?}", began.elapsed());
    let document = document?;
    ensure!(document.id("state")?.text == "failing, see below", "{}", document.id("state")?.text);
    let (parts, fixes) = (parts(&document)?, document.id("parts")?.of_class("fix"));
    let gateway = parts.iter().find(|[_, part, _]| *part == "gateway").context("no gateway")?;
    ensure!(gateway[0] == "fail" && gateway[2].contains("cannot be reached"), "{gateway:?}");
    ensure!(fixes.iter().any(|fix| fix.text.starts_with("→ pods get 503")), "no fix in {parts:?}");
    Ok(())
}
