//! What a measurement says, for people and for programs.

use super::usage::{Taken, rss_bytes};
use serde::Serialize;
use std::io::{self, Write};
use std::time::Duration;

/// One measurement. What does not apply to it is null.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What was measured: `fill`, `copy`, `filter`, `detect`, `restore`, `latency`.
    pub bench: &'static str,
    /// Pieces of work: sends, messages or opt-outs.
    pub count: u64,
    pub seconds: f64,
    /// Pieces a second.
    pub rate: f64,
    /// Microseconds of processor time of this process for each piece, all threads together.
    pub cpu_us: f64,
    /// Memory of this process at the end.
    pub rss_bytes: Option<u64>,
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    /// This rate over that of the bare copy of the same run.
    pub ratio_to_copy: Option<f64>,
    /// Share of the wall time in which a worker did nothing but wait for the fence, on average.
    pub fence_wait_share: Option<f64>,
}

impl Report {
    /// A measurement of so many pieces of work.
    pub(super) fn new(bench: &'static str, count: u64, taken: Taken) -> Self {
        Self {
            bench,
            count,
            seconds: taken.elapsed.as_secs_f64(),
            rate: taken.rate(count),
            cpu_us: taken.processor_us(count),
            rss_bytes: rss_bytes(),
            p50_ms: None,
            p99_ms: None,
            ratio_to_copy: None,
            fence_wait_share: None,
        }
    }

    /// This and another measurement of the same, as one.
    pub(super) fn and(&self, other: &Self) -> Self {
        let (count, seconds) = (self.count + other.count, self.seconds + other.seconds);
        Self {
            count,
            seconds,
            rate: count as f64 / seconds.max(1e-9),
            cpu_us: (self.cpu_us * self.count as f64 + other.cpu_us * other.count as f64) / count.max(1) as f64,
            rss_bytes: self.rss_bytes.max(other.rss_bytes),
            ..self.clone()
        }
    }

    /// With its ratio to the bare copy of the same run.
    pub(super) fn beside(mut self, copy: &Self) -> Self {
        self.ratio_to_copy = Some(self.rate / copy.rate.max(1e-9));
        self
    }

    /// With the percentiles of these times, which are sorted here.
    pub(super) fn with_percentiles(mut self, mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |share: f64| times.get(((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1)));
        let millis = |time: Option<&Duration>| time.map(|time| time.as_secs_f64() * 1e3);
        (self.p50_ms, self.p99_ms) = (millis(at(0.50)), millis(at(0.99)));
        self
    }

    /// Writes it as one line of JSON, or readably.
    pub(super) fn write(&self, json: bool, out: &mut impl Write) -> io::Result<()> {
        if json {
            serde_json::to_writer(&mut *out, self)?;
            return writeln!(out);
        }
        write!(out, "{:<8} {:>11} in {:>7.2} s  {:>11.0} /s  {:>6.2} us CPU", self.bench, self.count, self.seconds, self.rate, self.cpu_us)?;
        if let Some(bytes) = self.rss_bytes {
            write!(out, "  {:>6.0} MB RSS", bytes as f64 / 1e6)?;
        }
        if let Some(ratio) = self.ratio_to_copy {
            write!(out, "  {ratio:.2} x copy")?;
        }
        if let Some(share) = self.fence_wait_share {
            write!(out, "  {:.1} % waiting for the fence", share * 100.0)?;
        }
        if let (Some(p50), Some(p99)) = (self.p50_ms, self.p99_ms) {
            write!(out, "  p50 {p50:.1} ms, p99 {p99:.1} ms")?;
        }
        writeln!(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_and_ratios_are_of_what_was_measured() {
        let taken = |seconds| Taken { elapsed: Duration::from_secs(seconds), processor: Duration::from_secs(1) };
        let copy = Report::new("copy", 500, taken(1)).and(&Report::new("copy", 2500, taken(2)));
        assert_eq!((copy.count, copy.rate), (3000, 1000.0));
        let report = Report::new("latency", 1000, taken(2)).beside(&copy).with_percentiles((1..=100).rev().map(Duration::from_millis).collect());
        assert_eq!((report.rate, report.ratio_to_copy, report.cpu_us), (500.0, Some(0.5), 1000.0));
        assert_eq!((report.p50_ms, report.p99_ms), (Some(51.0), Some(100.0)));
        let mut json = Vec::new();
        report.write(true, &mut json).expect("memory");
        let value: serde_json::Value = serde_json::from_slice(&json).expect("one line of JSON");
        assert_eq!(value["ratio_to_copy"], 0.5);
    }

    #[test]
    fn nothing_measured_has_no_percentiles() {
        let taken = Taken { elapsed: Duration::from_secs(1), processor: Duration::ZERO };
        assert_eq!(Report::new("latency", 0, taken).with_percentiles(Vec::new()).p50_ms, None);
    }
}
