//! Fair shares of a limited resource among pods.

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use parking_lot::{Mutex, MutexGuard};
use tokio::{sync::Notify, time::timeout};

/// A limited resource: fills, requests, or bytes of memory.
///
/// A pod that holds a share may hold no more than what is free afterwards (dynamic thresholds, as in the buffers of
/// switches): one pod alone gets half of the resource, two get a third each, and a pod without a share gets one as
/// long as any is free.
#[derive(Debug)]
pub struct Shares {
    most: u64,
    taken: Mutex<ShareTaken>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct ShareTaken {
    all: u64,
    by_pod: HashMap<IpAddr, u64>,
}

/// An amount that one pod holds; released when it is dropped.
#[derive(Debug)]
pub struct Share {
    shares: Arc<Shares>,
    pod: IpAddr,
    amount: u64,
}

/// The reason why a pod does not get a share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taking {
    /// The resource is exhausted.
    All,
    /// The pod's share is exhausted.
    Pod,
}

impl Shares {
    /// Creates a resource of the amount `most`.
    #[must_use]
    pub fn new(most: u64) -> Arc<Self> {
        Arc::new(Self { most, taken: Mutex::default(), freed: Notify::new() })
    }

    /// Takes an amount for a pod.
    ///
    /// # Errors
    /// [`Taking`], if not enough is free for the pod.
    pub fn take(self: &Arc<Self>, pod: IpAddr, amount: u64) -> Result<Share, Taking> {
        let mut taken = self.taken();
        let free = self.most.saturating_sub(taken.all);
        let of_pod = taken.by_pod.get(&pod).copied().unwrap_or_default();
        if amount > free {
            return Err(if of_pod > free { Taking::Pod } else { Taking::All });
        }
        if of_pod > 0 && of_pod.saturating_add(amount) > free {
            return Err(Taking::Pod);
        }
        taken.all += amount;
        taken.by_pod.insert(pod, of_pod + amount);
        Ok(Share { shares: self.clone(), pod, amount })
    }

    /// Takes an amount for a pod, and waits up to the timeout until it is free.
    ///
    /// # Errors
    /// [`Taking`], after the timeout.
    pub async fn wait(
        self: &Arc<Self>,
        pod: IpAddr,
        amount: u64,
        idle_timeout: Duration,
    ) -> Result<Share, Taking> {
        let waited = timeout(idle_timeout, async {
            loop {
                let freed = self.freed.notified();
                let mut freed = std::pin::pin!(freed);
                // Registers for wake-ups before the attempt, so that none is missed.
                freed.as_mut().enable();
                if let Ok(share) = self.take(pod, amount) {
                    return share;
                }
                freed.await;
            }
        });
        match waited.await {
            Ok(share) => Ok(share),
            Err(_) => self.take(pod, amount),
        }
    }

    /// Returns the free amount.
    #[must_use]
    pub fn free(&self) -> u64 {
        self.most - self.taken().all
    }

    fn taken(&self) -> MutexGuard<'_, ShareTaken> {
        self.taken.lock()
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.shares.taken();
        taken.all -= self.amount;
        if let Some(of_pod) = taken.by_pod.get_mut(&self.pod) {
            *of_pod -= self.amount;
            if *of_pod == 0 {
                taken.by_pod.remove(&self.pod);
            }
        }
        drop(taken);
        self.shares.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pod(number: u8) -> IpAddr {
        [10, 0, 0, number].into()
    }

    fn all_of(shares: &Arc<Shares>, number: u8) -> Vec<Share> {
        std::iter::from_fn(|| shares.take(pod(number), 1).ok()).collect()
    }

    #[test]
    fn no_pod_exhausts_the_resource() {
        let shares = Shares::new(128);
        let one = all_of(&shares, 1);
        assert_eq!(one.len(), 64);
        assert_eq!(shares.take(pod(1), 1).unwrap_err(), Taking::Pod);
        let other = all_of(&shares, 2);
        assert_eq!(other.len(), 32);
        let third: Vec<_> = (0..20).map(|number| shares.take(pod(100 + number), 1).unwrap()).collect();
        drop((one, other, third));
        assert!(shares.taken().by_pod.is_empty() && shares.taken().all == 0);
    }

    #[test]
    fn the_last_one_goes_to_a_pod_without_a_share() {
        let shares = Shares::new(1);
        let only = shares.take(pod(1), 1).unwrap();
        assert_eq!(shares.take(pod(2), 1).unwrap_err(), Taking::All);
        drop(only);
        assert!(shares.take(pod(2), 1).is_ok());
        assert_eq!(shares.take(pod(2), 2).unwrap_err(), Taking::All, "more than there is");
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiter_gets_a_released_share() {
        let shares = Shares::new(2);
        let held = shares.take(pod(1), 2).unwrap();
        let waiting = {
            let shares = shares.clone();
            tokio::spawn(async move { shares.wait(pod(2), 1, Duration::from_secs(10)).await })
        };
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(held);
        let got = waiting.await.unwrap().unwrap();
        assert_eq!(shares.wait(pod(2), 2, Duration::from_secs(10)).await.unwrap_err(), Taking::All);
        drop(got);
    }

    proptest! {
        /// A pod with a share always leaves at least as much free, and no amount is lost.
        #[test]
        fn behaves_as_the_reference(steps in prop::collection::vec((0..4u8, 1..9u64, any::<bool>()), 1..200)) {
            let (shares, mut held) = (Shares::new(40), Vec::<(u8, u64, Share)>::new());
            for (number, amount, takes) in steps {
                if takes {
                    let of_pod: u64 = held.iter().filter(|(of, ..)| *of == number).map(|(_, amount, _)| amount).sum();
                    let free = 40 - held.iter().map(|(_, amount, _)| amount).sum::<u64>();
                    let expected = amount <= free && (of_pod == 0 || of_pod + amount <= free);
                    let got = shares.take(pod(number), amount);
                    prop_assert_eq!(got.is_ok(), expected);
                    held.extend(got.ok().map(|share| (number, amount, share)));
                } else if let Some(at) = held.iter().position(|(of, ..)| *of == number) {
                    held.swap_remove(at);
                }
                prop_assert_eq!(shares.free(), 40 - held.iter().map(|(_, amount, _)| amount).sum::<u64>());
            }
        }
    }
}
