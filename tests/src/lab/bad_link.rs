//! A node's link that harms frames, as `tc netem` would where the kernel has it.
//!
//! While it is inserted, the node's end at the switch is the port of a bridge of its own, and a thread carries the frames
//! between that bridge and the lab's:
//!
//! ```text
//! uplink of the node ── to-nX ── bad-nX (bridge) ── node-nX (TAP) ── thread ── lab-nX (TAP) ── br0
//! ```
//!
//! The kernel computes checksums and cuts segments to size before it gives frames to a TAP device, so that every frame
//! carries the checksums that it would have on a wire, and the receiver verifies them.

mod harm;

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::libc;
use tokio::{
    io::{Interest, unix::AsyncFd},
    runtime::Builder,
    sync::oneshot,
    time::sleep_until,
};

pub use harm::Harm;
use harm::LateFrames;

use super::{Lab, Namespace};

/// Maximum length of a frame, in bytes.
const MAX_FRAME: usize = 2048;
/// Time after which the thread looks for frames that are due, if none is.
const IDLE: Duration = Duration::from_secs(1);

nix::ioctl_write_ptr_bad!(
    /// Makes an open `/dev/net/tun` a device.
    set_device,
    nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
    libc::ifreq
);

/// A link that harms frames until it is removed.
#[derive(Debug)]
pub struct BadLink {
    switch: Namespace,
    node: u8,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl BadLink {
    /// Inserts a thread into the link of a node.
    ///
    /// # Errors
    /// If the kernel has no TAP devices, or the link is bad already.
    pub fn insert(lab: &Lab, node: u8, harm: Harm, seed: u64) -> Result<Self> {
        let switch = lab.switch();
        let devices = [format!("node-n{node}"), format!("lab-n{node}")];
        let taps = {
            let names = devices.clone();
            switch
                .run(move || -> Result<[File; 2]> { Ok([open_tap(&names[0])?, open_tap(&names[1])?]) })??
        };
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = thread::spawn(move || {
            if let Err(error) = runtime.block_on(carry(taps, LateFrames::new(harm, seed), stopped)) {
                eprintln!("a bad link ends: {error:#}");
            }
        });
        // From here on, what has been made is removed with it.
        let link = Self { switch, node, stop: Some(stop), thread: Some(thread) };
        link.switch.ip(&format!("link add bad-n{node} type bridge"))?;
        link.switch.ip(&format!("link set {} master bad-n{node} up", devices[0]))?;
        link.switch.ip(&format!("link set {} master br0 up", devices[1]))?;
        link.switch.ip(&format!("link set bad-n{node} up"))?;
        link.switch.ip(&format!("link set to-n{node} master bad-n{node}"))?;
        Ok(link)
    }

    /// Restores the link.
    ///
    /// # Errors
    /// If `ip` refuses.
    pub fn remove(mut self) -> Result<()> {
        self.restore()
    }

    fn restore(&mut self) -> Result<()> {
        // The devices disappear with the thread.
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
            self.switch.ip(&format!("link set to-n{} master br0", self.node))?;
            self.switch.ip(&format!("link delete bad-n{}", self.node))?;
        }
        Ok(())
    }
}

impl Drop for BadLink {
    fn drop(&mut self) {
        let _ = self.restore();
    }
}

/// Opens a new TAP device in the namespace of the calling thread. It exists while the file is open.
fn open_tap(name: &str) -> Result<File> {
    let tap = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .context("opening /dev/net/tun")?;
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: libc::c_short::try_from(libc::IFF_TAP | libc::IFF_NO_PI)?,
        },
    };
    // The last byte remains zero.
    for (place, byte) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(name.bytes()) {
        *place = byte.cast_signed();
    }
    // SAFETY: the kernel reads and writes the request, which lives until the call returns.
    unsafe { set_device(tap.as_raw_fd(), &raw const request) }.with_context(|| format!("making {name}"))?;
    Ok(tap)
}

fn register(tap: File) -> Result<AsyncFd<File>> {
    // SAFETY: a file owns its descriptor, which is neither replaced nor closed before both are dropped.
    unsafe { AsyncFd::register(tap) }.context("registering a TAP device")
}

/// Carries frames from each device to the other.
async fn carry(taps: [File; 2], mut late: LateFrames, mut stopped: oneshot::Receiver<()>) -> Result<()> {
    let [first, second] = taps;
    let taps = [register(first)?, register(second)?];
    let mut buffers = [[0; MAX_FRAME]; 2];
    loop {
        let [first, second] = &mut buffers;
        let due = late.next_due().unwrap_or_else(|| Instant::now() + IDLE);
        tokio::select! {
            _ = &mut stopped => return Ok(()),
            length = taps[0].async_io(Interest::READABLE, |mut tap| tap.read(first)) => {
                late.push(1, &first[..length?], Instant::now());
            }
            length = taps[1].async_io(Interest::READABLE, |mut tap| tap.read(second)) => {
                late.push(0, &second[..length?], Instant::now());
            }
            () = sleep_until(due.into()) => {}
        }
        while let Some((to, frame)) = late.pop_due(Instant::now()) {
            // A link may lose frames, for example because its other end is down.
            let _ = taps[to].get_ref().write(&frame);
        }
    }
}
