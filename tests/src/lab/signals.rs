//! Ctrl-C, in the middle of anything: everything goes, then the process.

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

/// Takes the lab of this name down on the first signal that ends a process, and ends this one.
///
/// # Errors
/// If signals cannot be watched.
pub fn clean_up_on_signal(name: &'static str) -> Result<()> {
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
        // What other threads were making meanwhile may appear after a first look.
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

/// For the main thread, before it ends the process: a clean-up under way does that.
pub fn still_wanted() {
    while STOPPING.load(Ordering::Acquire) {
        thread::park();
    }
}
