//! The threads that serve, one for each CPU.
//!
//! Each has a runtime of its own, and so has whatever belongs to a connection that it was given: a request is read,
//! asked about at the gateway and answered without another thread being woken. Stealing work from each other, two
//! threads took a quarter more CPU time for a small hit.

use std::{
    cell::Cell,
    io,
    num::NonZero,
    sync::{Arc, LazyLock},
    thread,
};

use tokio::runtime::{Builder, Handle};

use crate::privileges;

thread_local! {
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

/// The threads; they end with the process.
#[derive(Clone, Debug)]
pub struct Workers {
    handles: Arc<[Handle]>,
}

impl Workers {
    /// Starts them, without any capability.
    ///
    /// # Errors
    /// If the system has no more threads or descriptors.
    pub fn start() -> io::Result<Self> {
        let handles = (0..count()).map(start).collect::<io::Result<_>>()?;
        Ok(Self { handles })
    }

    /// Where everything runs that there is one of.
    #[must_use]
    pub fn first(&self) -> &Handle {
        &self.handles[0]
    }

    /// Where the next connections are served, one after another: they take turns.
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

/// How many there are.
#[must_use]
pub fn count() -> usize {
    static COUNT: LazyLock<usize> = LazyLock::new(|| thread::available_parallelism().map_or(1, NonZero::get));
    *COUNT
}

/// Which of them this thread is; the first, if it is none of them.
#[must_use]
pub fn current() -> usize {
    CURRENT.get()
}
