//! What this process has used: processor time and memory.

use rustix::time::{ClockId, clock_gettime};
use std::time::{Duration, Instant};

/// Processor time of all threads of this process.
fn processor() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or_default(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// Memory in use now, in bytes; `None` where the system does not tell as Linux does.
pub(super) fn rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// A stretch of work that is being measured.
pub(super) struct Stretch {
    began: Instant,
    processor: Duration,
}

/// What a stretch of work took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    pub(super) elapsed: Duration,
    pub(super) processor: Duration,
}

impl Stretch {
    /// Begins now.
    pub(super) fn begin() -> Self {
        Self { began: Instant::now(), processor: processor() }
    }

    /// What was taken until now.
    pub(super) fn taken(&self) -> Taken {
        Taken { elapsed: self.began.elapsed(), processor: processor().saturating_sub(self.processor) }
    }
}

impl Taken {
    /// So many pieces of work a second.
    pub(super) fn rate(&self, pieces: u64) -> f64 {
        pieces as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// Microseconds of processor time that one of so many pieces took.
    pub(super) fn processor_us(&self, pieces: u64) -> f64 {
        self.processor.as_secs_f64() * 1e6 / pieces.max(1) as f64
    }
}
