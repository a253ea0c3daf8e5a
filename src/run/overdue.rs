//! How many messages wait for a verdict, and for how long: for metrics. Passing a deadline writes nothing.

use super::list::reviews;
use super::stop::Stop;
use super::view::SharedView;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::stage::entry::standing;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often they are counted, unless counting takes long: it reads the topic of reviews whole.
const EVERY: Duration = Duration::from_secs(30);
/// At most one part of so many of the time is spent with counting.
const SHARE: u32 = 50;

/// Counts until the process stops.
fn watch(config: &Config, view: &SharedView, metrics: &Metrics, stop: &Stop) {
    let mut is_told = false;
    while !stop.is_asked() {
        let began = Instant::now();
        match reviews::by(config, &|key| standing(&view.read(), key)) {
            Ok(waiting) => {
                let now = super::now().millis();
                let overdue = waiting.iter().filter(|request| request.deadline_ms < now).count();
                let oldest = waiting.iter().map(|request| now.saturating_sub(request.occurred_at_ms)).max().unwrap_or_default();
                metrics.reviews_waiting.set(waiting.len() as i64);
                metrics.reviews_overdue.set(overdue as i64);
                metrics.review_oldest_seconds.set(oldest.max(0) / 1000);
            }
            // Nothing rests on it: told once, for who lacks the right to read the topic.
            Err(error) if !is_told => {
                is_told = true;
                tracing::warn!(%error, "waiting reviews are not counted");
            }
            Err(error) => tracing::debug!(%error, "waiting reviews were not counted"),
        }
        stop.sleep(EVERY.max(began.elapsed() * SHARE));
    }
}

/// Starts it on a thread of its own.
pub(super) fn start(config: Arc<Config>, view: Arc<SharedView>, metrics: Arc<Metrics>, stop: Stop) -> std::io::Result<()> {
    std::thread::Builder::new().name("reviews".into()).spawn(move || watch(&config, &view, &metrics, &stop)).map(drop)
}
