//! Formats a report as text.

use super::NodeReport;

impl NodeReport {
    /// Returns one line for each part, and the fix where there is a problem.
    #[must_use]
    pub fn table(&self, colors: bool) -> String {
        self.findings.iter().map(|finding| finding.text(colors)).collect()
    }
}

/// Formats a number of bytes: `1.5 GiB`.
#[must_use]
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1 << 10 {
        return format!("{bytes} B");
    }
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let (mut size, mut unit) = (bytes as f64 / 1024.0, 0);
    while size >= 1023.95 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    format!("{size:.1} {}", UNITS[unit])
}

/// Formats a duration in seconds: `3 h 12 min`.
#[must_use]
pub fn duration(seconds: f64) -> String {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "for people")]
    let whole = seconds.max(0.0) as u64;
    let (minutes, hours, days) = (whole / 60, whole / 3600, whole / 86_400);
    match whole {
        0..=119 => format!("{whole} s"),
        120..=7199 => format!("{minutes} min"),
        7200..=172_799 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

/// Formats a count with its unit, in the plural unless it is one.
#[must_use]
pub fn count(number: usize, of: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {of}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_formatted_for_people() {
        assert_eq!(
            [0, 1023, 1024, 1536, (1 << 20) - 1, 1 << 20, 5 << 40, u64::MAX].map(bytes),
            ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "1.0 MiB", "5.0 TiB", "16.0 EiB"]
        );
        assert_eq!(
            [-1.0, 0.4, 119.0, 120.0, 7200.0, 100_000.0, 172_800.0].map(duration),
            ["0 s", "0 s", "119 s", "2 min", "2 h 0 min", "27 h 46 min", "2 d 0 h"]
        );
        assert_eq!([0, 1, 2].map(|number| count(number, "disk")), ["0 disks", "1 disk", "2 disks"]);
    }
}
