//! Ends a daemon: hands over to the one that takes its place, and finishes open requests.

use std::{
    fs::File,
    io,
    os::fd::AsFd as _,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use anyhow::Result;
use tokio::{net::UnixStream, sync::watch};

use super::{
    Daemon, LOOKUP_INTERVAL, VERIFY_INTERVAL,
    handover::Taker,
    operators_entries,
    seen_messages::SeenFile,
    sockets::{CACHE_LOCK, PINS_LOCK},
};
use crate::http::server::Life;

/// Duration for which a daemon that hands over continues its heartbeat. Meanwhile, new connections wait for the next
/// daemon. Afterwards, connections to names that also work without LOTA must not wait any longer.
const HANDOVER_HEARTBEATS: Duration = Duration::from_secs(10);
/// Timeout for responses in progress when the daemon stops, and for idle clients after a handover.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

impl Daemon {
    /// Handles a connection to the handover socket. Returns true once another daemon serves.
    pub(super) async fn handover_requested(
        &mut self,
        accepted: io::Result<(UnixStream, tokio::net::unix::SocketAddr)>,
    ) -> Result<bool> {
        let greeted = match accepted {
            Ok((stream, _)) => Taker::greet(stream).await,
            Err(error) => {
                // Descriptors may be exhausted for now.
                tokio::time::sleep(VERIFY_INTERVAL).await;
                Err(error.into())
            }
        };
        match greeted {
            Ok(Some(taker)) => self.hand_over(taker).await,
            Ok(None) => Ok(false),
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "ignored a request to hand over");
                Ok(false)
            }
        }
    }

    /// Hands over to another daemon. Returns true once that daemon serves; otherwise this one continues.
    ///
    /// # Errors
    /// If the handover fails.
    async fn hand_over(&mut self, taker: Taker) -> Result<bool> {
        while let Ok(command) = self.commands.try_recv() {
            self.control.obey(command).await;
        }
        // From here on, new connections wait in the sockets, which both daemons have.
        self.tasks.abort_all();
        while self.tasks.join_next().await.is_some() {}
        let cache = &self.listeners.proxy.cache;
        cache.set_handed_over(true);
        let cache_locks = cache.locks()?;
        let mut given = self.sockets.names();
        // A duplicate, since the datapath hears of heartbeats meanwhile.
        let lock = self.control.datapath().lock().map(File::try_clone).transpose()?;
        given.extend(lock.iter().map(|lock| (PINS_LOCK.to_owned(), lock.as_fd())));
        let of_disks = cache_locks.iter().enumerate();
        given.extend(of_disks.map(|(disk, lock)| (format!("{CACHE_LOCK}{disk}"), lock.as_fd())));
        let seen = SeenFile::new()?;
        given.push(seen.named());
        let entries = operators_entries::file_of(&self.control.unbound_entries())?;
        given.push(entries.named());
        let peers = self.listeners.proxy.peers.clone();
        let seal = || peers.iter().for_each(|peers| seen.seal(peers));
        let given = {
            let mut give = std::pin::pin!(taker.give(&given, seal));
            let mut lookup = tokio::time::interval(LOOKUP_INTERVAL);
            let started = Instant::now();
            loop {
                tokio::select! {
                    given = &mut give => break given,
                    _ = lookup.tick() => {
                        self.control.publish_kernel_table();
                        if started.elapsed() < HANDOVER_HEARTBEATS {
                            self.control.beat();
                        }
                    }
                }
            }
        };
        match given {
            Ok(true) => {
                // If that daemon dies while this one still drains, the next must not find the disks locked.
                self.listeners.proxy.cache.release_locks();
                self.control.release_lock();
                return Ok(true);
            }
            Ok(false) => tracing::error!("the daemon that was taking over failed; continuing"),
            Err(error) => tracing::error!(error = format!("{error:#}"), "cannot hand over; continuing"),
        }
        self.listeners.proxy.cache.set_handed_over(false);
        if let Some(peers) = &self.listeners.proxy.peers {
            peers.unseal();
        }
        if let Err(error) = self.control.reassert(&self.sockets.hidden).await {
            tracing::error!(
                error = format!("{error:#}"),
                "cannot restore the datapath completely after the failed handover"
            );
        }
        self.open_doors()?;
        Ok(false)
    }

    /// Finishes open requests. The datapath stays: until the next daemon starts, it refuses pods' connections, so
    /// that they fail at once.
    pub(super) async fn end(self, handed_over: bool, mut stop: watch::Receiver<bool>) {
        let Self {
            control,
            sockets,
            listeners,
            admin,
            commands,
            life,
            peer_life,
            mut drained,
            mut tasks,
            ..
        } = self;
        admin.ready.store(false, Ordering::Release);
        tasks.abort_all();
        let cache = listeners.proxy.cache.clone();
        drop((listeners, admin, tasks, commands));
        if !handed_over {
            tracing::info!("stopping: refusing new connections, finishing responses in progress");
            sockets.unlink();
            // New connections are refused instead of waiting.
            drop(sockets);
            life.send_replace(Life::Ending);
            peer_life.end();
            let _ = tokio::time::timeout(DRAIN_TIMEOUT, drained.recv()).await;
            cache.close();
            return;
        }
        tracing::info!("handed over: finishing responses in progress");
        drop(sockets);
        life.send_replace(Life::Draining);
        // The successor verifies all further messages of peers.
        peer_life.end();
        // The successor writes the maps now.
        let follow = async {
            let mut lookup = tokio::time::interval(LOOKUP_INTERVAL);
            loop {
                lookup.tick().await;
                control.publish_kernel_table();
            }
        };
        let finish = async {
            tokio::select! {
                _ = drained.recv() => return,
                // Idle clients are closed after the timeout. Transfers in progress continue until the daemon must
                // stop, and then for the timeout that they would have had without a successor.
                () = tokio::time::sleep(DRAIN_TIMEOUT) => {}
                _ = stop.wait_for(|stop| *stop) => {}
            }
            life.send_replace(Life::Ending);
            tokio::select! {
                _ = drained.recv() => return,
                _ = stop.wait_for(|stop| *stop) => {}
            }
            let _ = tokio::time::timeout(DRAIN_TIMEOUT, drained.recv()).await;
        };
        tokio::select! {
            () = follow => {}
            () = finish => {}
        }
    }
}
