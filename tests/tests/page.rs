//! The status page of a node in the lab, in a real browser. Pictures of it are left in `target/page`.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lota_tests::{
    lab::{ADMIN_PORT, DENIED, Mode, Pod, Style, VIP, knock, node_address, run},
    suite::{Suite, Test, lab_with},
    tool,
    tour::{MIB, Tour, wait_until},
};
use nix::sys::signal::Signal;

/// The lab of this suite.
const NAME: &str = "lota-page";
/// What a folder may be called.
const MARKUP: &str = "<img id=foreign src=x>&amp;";
/// Time that passes for the page before it is looked at: a few of its questions.
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

/// A look at a page.
type Look = fn(&mut Tour) -> Result<()>;

fn main() -> ExitCode {
    Suite::run(NAME, |suite| {
        let tests: [(&str, Look); 4] = [
            ("a healthy node", healthy),
            ("who is refused", refused),
            ("strangers' words are text", markup),
            ("a gateway that is gone", gone),
        ];
        let tests: Vec<Test> = tests.map(|(name, test)| (name.to_owned(), Box::new(test) as Box<_>)).into();
        suite.in_lab(|| lab_with(NAME, "embedded"), tests);
    })
}

/// A node's page, as it is after a while: its document, or a picture of it.
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
        run(command.arg(format!("http://{}/", SocketAddr::from((node_address(self.node), ADMIN_PORT)))))
    }

    fn document(&self) -> Result<String> {
        self.run(&["--dump-dom"])
    }

    fn picture(&self, name: &str, size: (u32, u32), more: &[&str]) -> Result<()> {
        let folder = target().join("page");
        fs::create_dir_all(&folder)?;
        let path = folder.join(name);
        let _ = fs::remove_file(&path);
        let (shot, window) =
            (format!("--screenshot={}", path.display()), format!("--window-size={},{}", size.0, size.1));
        self.run(&[&[&*shot, &window], more].concat())?;
        let png = fs::read(&path).with_context(|| format!("no picture {}", path.display()))?;
        ensure!(png.starts_with(b"\x89PNG") && png.len() > 10_000, "{} is no picture", path.display());
        Ok(())
    }
}

/// Where Cargo puts what it builds.
fn target() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap_or(Path::new(".")).to_owned()
}

fn expect(document: &str, words: &[&str]) -> Result<()> {
    words.iter().try_for_each(|words| {
        ensure!(document.contains(words), "no `{words}` in\n{document}");
        Ok(())
    })
}

fn healthy(tour: &mut Tour) -> Result<()> {
    let (client, pod) = (tour.client.clone(), tour.pod(1, 1));
    client.create_bucket(&pod)?;
    client.put(&pod, "page", 51, MIB)?;
    wait_until("a hit", || Ok(client.get(&pod, "page", Style::Path)?.cache() == "hit"))?;
    // Traffic, for as long as the page is looked at.
    let until = tour.lab.folder().join("until");
    client.put_and_hit(&pod, "busy", 10)?;
    let (busy, stop) = (client.clone(), until.clone());
    let busy = std::thread::spawn(move || busy.busy(&pod, "busy", 2, &stop));
    let browser = Browser { tour, node: 1 };
    let looked = browser.document().and_then(|document| {
        browser.picture("wide.png", (1280, 1500), &[])?;
        browser.picture("narrow.png", (400, 2600), &[])?;
        browser.picture("dark.png", (1280, 1500), &["--blink-settings=preferredColorScheme=0"])?;
        Ok(document)
    });
    fs::write(&until, "")?;
    busy.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
    let document = looked?;
    // Its client takes either.
    let addresses = [Pod(1, 1).address().to_string(), Pod(1, 1).address6().to_string()];
    ensure!(addresses.iter().any(|address| document.contains(address)), "no pod in\n{document}");
    expect(
        &document,
        &["<title>n1 – LOTA</title>", ">all is well<", "(this one)", ">alive<", "<meter", "veth-p1"],
    )?;
    ensure!(
        !document.contains("class=\"mark fail\"") && !document.contains("class=\"mark warn\""),
        "{document}"
    );
    let points = document.split("class=\"local\" points=\"").nth(1).context("no line")?;
    ensure!(
        points.split('"').next().is_some_and(|points| points.contains(' ')),
        "a line without points:\n{document}"
    );
    Ok(())
}

fn refused(tour: &mut Tour) -> Result<()> {
    knock(&tour.lab.pod(DENIED), VIP, 80)?;
    let browser = Browser { tour, node: DENIED.0 };
    expect(&browser.document()?, &[&DENIED.address().to_string(), &format!(">{}<", DENIED.interface())])?;
    browser.picture("refused.png", (1280, 1500), &[])
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
    expect(&document, &["/&lt;img id=foreign src=x&gt;&amp;amp;"])?;
    ensure!(!document.contains("<img"), "{document}");
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
    expect(&document?, &["something fails", "cannot be reached", "→ pods get 503"])
}
