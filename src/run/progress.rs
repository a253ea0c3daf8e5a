//! How long work shows its progress: a bar on standard error where that is a terminal, and nothing elsewhere, so that
//! output that is piped or logged stays as it is.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;

const OF_KNOWN_LENGTH: &str = "{msg:24} {bar:30} {human_pos}/{human_len} {per_sec} {eta}";
const OF_UNKNOWN_LENGTH: &str = "{msg:24} {spinner} {human_pos} {per_sec} {elapsed}";

/// A bar that counts to `length`, or counts without end where that is `None`; it clears its line when dropped.
pub fn bar(what: &'static str, length: Option<u64>) -> ProgressBar {
    let target = if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr_with_hz(8) } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(length, target).with_message(what);
    let template = if length.is_some() { OF_KNOWN_LENGTH } else { OF_UNKNOWN_LENGTH };
    // A template is a constant of this file: one that cannot be read would show in its first use.
    bar.with_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()))
        .with_finish(indicatif::ProgressFinish::AndClear)
}
