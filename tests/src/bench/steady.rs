//! Figures over time that must stay at a level: the latency of each minute, and what is used.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::load::LatencyCounts;

/// Bound of the 99th percentile of a window, relative to the median of the first [`FIRST`] windows.
pub const MAX_RATIO: f64 = 4.0;
/// Latency in seconds below which no difference matters: the scheduling of two busy cores.
const FLOOR: f64 = 0.025;
/// Number of windows with which the others are compared.
const FIRST: usize = 3;
/// Number of windows that a short run has at least.
const LEAST: u32 = 8;

/// Windows of a minute, or of a part of a short run.
#[derive(Debug)]
pub struct Windows {
    /// Length of a window.
    pub length: Duration,
    counts: Option<LatencyCounts>,
    ended: u32,
    /// 99th percentiles of the first windows, in seconds.
    first: Vec<f64>,
    /// Largest ratio so far.
    pub worst: f64,
}

impl Windows {
    /// Divides a run of this length.
    #[must_use]
    pub fn of(run: Duration) -> Self {
        let length = Duration::from_secs(60).min(run / LEAST);
        Self { length, counts: None, ended: 0, first: Vec::new(), worst: 0.0 }
    }

    /// Begins with the requests so far.
    pub fn begin(&mut self, counts: LatencyCounts) {
        self.counts = Some(counts);
    }

    /// Notes the requests since the beginning.
    ///
    /// # Errors
    /// If a window has ended that was too slow.
    pub fn add(&mut self, elapsed: Duration, counts: &LatencyCounts) -> Result<()> {
        if elapsed < self.length * (self.ended + 1) {
            return Ok(());
        }
        let Some(before) = self.counts.replace(counts.clone()) else { return Ok(()) };
        self.ended += 1;
        let p99 = counts.since(&before).percentile(0.99).max(FLOOR);
        if self.first.len() < FIRST {
            self.first.push(p99);
            self.first.sort_by(f64::total_cmp);
            return Ok(());
        }
        let usual = self.first[FIRST / 2];
        self.worst = self.worst.max(p99 / usual);
        ensure!(
            p99 / usual <= MAX_RATIO,
            "the 99th percentile of window {} of {:.0?} is {:.0} ms, more than {MAX_RATIO} times the first ones' {:.0} ms",
            self.ended,
            self.length,
            p99 * 1e3,
            usual * 1e3
        );
        Ok(())
    }
}

/// Returns the means of the second and of the last quarter of a figure; `None` without two values in each.
#[must_use]
pub fn quarters(over_time: &[f64]) -> Option<(f64, f64)> {
    let quarter = over_time.len() / 4;
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (second, last) = (&over_time[quarter..2 * quarter], &over_time[over_time.len() - quarter..]);
    (quarter >= 2).then(|| (mean(second), mean(last)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Latencies;

    /// Returns what becomes of a run of eight minutes with these latencies in milliseconds, one in each minute.
    fn run(minutes: [u64; 8]) -> Result<f64> {
        let (latencies, minute) = (Latencies::default(), Duration::from_secs(60));
        let mut windows = Windows::of(minute * 8);
        windows.begin(latencies.counts());
        for (number, latency) in (1..).zip(minutes) {
            (0..100).for_each(|_| latencies.add(Duration::from_millis(latency)));
            windows.add(minute * number - Duration::from_secs(5), &latencies.counts())?;
            windows.add(minute * number, &latencies.counts())?;
        }
        Ok(windows.worst)
    }

    #[test]
    fn a_minute_is_compared_with_the_median_of_the_first_ones() {
        let steady = run([900, 100, 100, 100, 200, 100, 100, 100]).unwrap();
        assert!((1.7..2.3).contains(&steady), "{steady}");
        let slow = run([100, 100, 100, 100, 100, 100, 600, 100]).unwrap_err().to_string();
        assert!(slow.contains("window 7"), "{slow}");
        assert!(run([1, 1, 1, 1, 20, 1, 1, 1]).is_ok(), "less than the floor");
    }

    #[test]
    fn the_second_quarter_is_compared_with_the_last() {
        assert_eq!(quarters(&[9.0, 9.0, 1.0, 3.0, 9.0, 9.0, 5.0, 7.0]), Some((2.0, 6.0)));
        assert_eq!(quarters(&[1.0; 7]), None);
        assert_eq!(quarters(&[]), None);
    }
}
