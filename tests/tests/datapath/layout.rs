//! Pins of another build.

use std::{
    fs::{self, File},
    process::Command,
};

use anyhow::{Result, ensure};
use lota_common::{LAYOUT, map};
use lota_tests::{
    lab::{Pod, Reached, VIP, knock, run},
    tour::{Tour, wait_until},
};
use nix::sys::signal::Signal;

pub(crate) fn others(tour: &mut Tour) -> Result<()> {
    let pod = tour.lab.pod(Pod(1, 1));
    let node = &mut tour.nodes[0];
    let pins = tour.lab.pins(1);
    let old = pins.join("v1");
    fs::create_dir_all(old.join("links"))?;
    let create = |path: &std::path::Path, value: &str| {
        let mut command = Command::new("bpftool");
        command.args(["map", "create"]).arg(path);
        run(command
            .args(["type", "hash", "key", "4", "value", value, "entries", "16", "name", "old", "flags", "1"]))
    };
    create(&old.join(map::ACCESS4), "4")?;

    // While a daemon of that build runs, its pins must not be touched.
    let lock = File::open(&old)?;
    lock.lock()?;
    node.stop(Signal::SIGTERM)?;
    let refused = node.start();
    ensure!(
        refused.is_err_and(|error| format!("{error:#}").contains("another daemon uses it")),
        "it started beside a daemon of another build"
    );
    drop(lock);
    node.start()?;
    // It serves first.
    wait_until("the pins of the old layout to be removed", || Ok(!old.exists()))?;
    ensure!(knock(&pod, VIP, 80)?.0 == Reached::Open, "it does not serve in place of the old daemon");

    // A map with the same layout version but another value size.
    node.stop(Signal::SIGTERM)?;
    let pinned = pins.join(format!("v{LAYOUT}")).join(map::ACCESS4);
    fs::remove_file(&pinned)?;
    create(&pinned, "64")?;
    let refused = node.start();
    fs::remove_file(&pinned)?;
    let error = refused.map_err(|error| format!("{error:#}")).err().unwrap_or_default();
    ensure!(
        error.contains(map::ACCESS4) && error.contains("detach"),
        "a map with another value size: {error:?}"
    );
    node.start()?;
    ensure!(knock(&pod, VIP, 80)?.0 == Reached::Open, "and afterwards");
    Ok(())
}
