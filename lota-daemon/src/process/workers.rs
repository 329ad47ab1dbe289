//! The worker threads, one for each CPU.
//!
//! Each worker has its own runtime and keeps all tasks of its connections, so that a request is handled without
//! waking another thread. With work stealing, two threads used a quarter more CPU time for a small hit.

use std::{
    cell::Cell,
    io,
    num::NonZero,
    sync::{Arc, LazyLock},
    thread,
};

use tokio::runtime::{Builder, Handle};

use crate::process::privileges;

thread_local! {
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

/// The worker threads, which run until the process ends.
#[derive(Clone, Debug)]
pub struct Workers {
    handles: Arc<[Handle]>,
}

impl Workers {
    /// Starts the workers without any capability.
    ///
    /// # Errors
    /// If the system has no threads or descriptors left.
    pub fn start() -> io::Result<Self> {
        let handles = (0..count()).map(start).collect::<io::Result<_>>()?;
        Ok(Self { handles })
    }

    /// Returns the worker that runs the tasks which exist once.
    #[must_use]
    pub fn first(&self) -> &Handle {
        &self.handles[0]
    }

    /// Returns the workers for the next connections in round-robin order.
    pub fn turns(&self) -> impl Iterator<Item = &Handle> {
        self.handles.iter().cycle()
    }
}

fn start(number: usize) -> io::Result<Handle> {
    let runtime = Builder::new_current_thread().enable_all().on_thread_start(privileges::drop_all).build()?;
    let handle = runtime.handle().clone();
    thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
        privileges::drop_all();
        CURRENT.set(number);
        runtime.block_on(std::future::pending::<()>());
    })?;
    Ok(handle)
}

/// Returns the number of workers.
#[must_use]
pub fn count() -> usize {
    static COUNT: LazyLock<usize> = LazyLock::new(|| thread::available_parallelism().map_or(1, NonZero::get));
    *COUNT
}

/// Returns the index of the worker that runs this thread, or 0 if none does.
#[must_use]
pub fn current() -> usize {
    CURRENT.get()
}
