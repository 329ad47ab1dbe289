//! Tracks whether the gateway has stopped answering.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use super::{Sent, waiting::Silence};
use crate::http::upstream::{chain, is_from_body, is_unreadable, refusal_of_body};
use parking_lot::Mutex;

/// Age beyond which the result of the last request says nothing about the gateway.
const FAILURE_AGE: Duration = Duration::from_secs(60);

/// Failure of the latest request to the gateway, if it had no response.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    /// Number of responses so far.
    answers: AtomicU64,
    /// Whether there is a failure; nearly always false, and cheap to read.
    any: AtomicBool,
    what: Mutex<Option<What>>,
}

#[derive(Debug)]
struct What {
    since: Instant,
    last: Instant,
    why: String,
}

impl Trouble {
    /// Returns the number of responses so far, for [`Trouble::note_silence`].
    pub(super) fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }

    /// Records the result of a request. An unreadable response shows that the gateway can be reached; its contents
    /// depend on whoever wrote the object.
    pub(super) fn note(&self, answer: &Result<Sent, Silence>) {
        match answer {
            // The client's body failed.
            Ok(Err(error)) if is_from_body(error) || refusal_of_body(error).is_some() => {}
            Ok(Err(error)) if !is_unreadable(error) => self.begin(chain(error)),
            Err(Silence::Away(why)) => self.begin(why.clone()),
            Err(Silence::Late(waited)) => self.begin(silence(*waited)),
            Ok(_) => {
                self.answers.fetch_add(1, Ordering::Relaxed);
                if self.any.load(Ordering::Relaxed) {
                    self.end();
                }
            }
        }
    }

    /// Records that a request has waited for so long, unless there were other responses since `answers`.
    pub(super) fn note_silence(&self, answers: u64, waited: Duration) {
        if self.answers() == answers {
            self.begin(silence(waited));
        }
    }

    /// Returns how long no request has been answered, and why the last one was not.
    pub(super) fn now(&self) -> Option<(Duration, String)> {
        let what = self.what.lock();
        let what = what.as_ref().filter(|what| what.last.elapsed() < FAILURE_AGE);
        what.map(|what| (what.since.elapsed(), what.why.clone()))
    }

    fn begin(&self, why: String) {
        let mut what = self.what.lock();
        let last = Instant::now();
        let since = what.as_ref().map_or(last, |what| what.since);
        *what = Some(What { since, last, why });
        self.any.store(true, Ordering::Relaxed);
    }

    fn end(&self) {
        let mut what = self.what.lock();
        *what = None;
        self.any.store(false, Ordering::Relaxed);
    }
}

fn silence(waited: Duration) -> String {
    format!("no answer within {} s", waited.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_starts_once_and_ends_with_a_response() {
        let trouble = Trouble::default();
        assert!(trouble.now().is_none());
        trouble.note(&Err(Silence::Late(Duration::from_secs(20))));
        std::thread::sleep(Duration::from_millis(2));
        trouble.begin("reset".into());
        let (since, why) = trouble.now().unwrap();
        assert!(since >= Duration::from_millis(2) && why == "reset", "{since:?} {why}");
        trouble.end();
        assert!(trouble.now().is_none());
    }

    #[test]
    fn silence_is_a_failure_only_without_other_responses() {
        let trouble = Trouble::default();
        let before = trouble.answers();
        trouble.answers.fetch_add(1, Ordering::Relaxed);
        trouble.note_silence(before, Duration::from_secs(20));
        assert!(trouble.now().is_none(), "others were answered");
        trouble.note_silence(trouble.answers(), Duration::from_secs(20));
        assert_eq!(trouble.now().unwrap().1, "no answer within 20 s");
    }
}
