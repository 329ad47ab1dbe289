//! Has the gateway stopped answering?

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use hyper::{Response, body::Incoming};
use hyper_util::client::legacy::Error;

use crate::http::upstream::{chain, is_from_body, refusal_of_body};

/// After so long without a request, the last one's fate says nothing.
const LATELY: Duration = Duration::from_secs(60);

/// What its last answer was, if it was none.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    /// Nearly always false, which costs nothing to see.
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
    /// A request was answered, or not, after so long.
    pub(super) fn note(&self, answer: Option<&Result<Response<Incoming>, Error>>, waited: Duration) {
        match answer {
            // The client's own.
            Some(Err(error)) if is_from_body(error) || refusal_of_body(error).is_some() => {}
            Some(Err(error)) => self.begin(chain(error)),
            None => self.begin(format!("no answer within {} s", waited.as_secs())),
            Some(Ok(_)) if self.any.load(Ordering::Relaxed) => self.end(),
            Some(Ok(_)) => {}
        }
    }

    /// For how long no request has been answered, and why the last one was not.
    pub(super) fn now(&self) -> Option<(Duration, String)> {
        let what = self.what.lock().unwrap_or_else(PoisonError::into_inner);
        let what = what.as_ref().filter(|what| what.last.elapsed() < LATELY);
        what.map(|what| (what.since.elapsed(), what.why.clone()))
    }

    fn begin(&self, why: String) {
        let mut what = self.what.lock().unwrap_or_else(PoisonError::into_inner);
        let last = Instant::now();
        let since = what.as_ref().map_or(last, |what| what.since);
        *what = Some(What { since, last, why });
        self.any.store(true, Ordering::Relaxed);
    }

    fn end(&self) {
        let mut what = self.what.lock().unwrap_or_else(PoisonError::into_inner);
        *what = None;
        self.any.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn begins_once_and_ends_with_an_answer() {
        let trouble = Trouble::default();
        assert!(trouble.now().is_none());
        trouble.note(None, Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(2));
        trouble.begin("reset".into());
        let (since, why) = trouble.now().unwrap();
        assert!(since >= Duration::from_millis(2) && why == "reset", "{since:?} {why}");
        trouble.end();
        assert!(trouble.now().is_none());
    }
}
