//! Removal of the lab on signals.

use std::{
    process,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::Result;
use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
};

use super::Lab;

static STOPPING: AtomicBool = AtomicBool::new(false);

/// Removes the lab of this name and exits on the first SIGINT, SIGTERM or SIGHUP.
///
/// # Errors
/// If signal handlers cannot be installed.
pub(super) fn clean_up_on_signal(name: &'static str) -> Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate, mut hang_up) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?)
    };
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hang_up.recv() => {}
            }
        });
        STOPPING.store(true, Ordering::Release);
        // Other threads may still be creating parts of the lab.
        while !Lab::leftovers(name).is_empty() {
            if let Err(error) = Lab::down(name) {
                eprintln!("lota-lab: {error:#}");
            }
            thread::sleep(Duration::from_millis(50));
        }
        process::exit(130);
    });
    Ok(())
}

/// Blocks if a signal has started the removal, which then exits the process. To be called before the main thread exits
/// or another lab is created.
pub fn still_wanted() {
    while STOPPING.load(Ordering::Acquire) {
        thread::park();
    }
}
