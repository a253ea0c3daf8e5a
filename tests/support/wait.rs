//! Waiting for what another process does: until a condition holds, or the deadline, with a text that says what failed.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// Long enough for anything that works, on a busy machine; short enough to fail a run.
pub const DEADLINE: Duration = Duration::from_secs(45);

/// Asks until `condition` gives a value, and returns it.
///
/// # Panics
/// At the deadline, naming `what` was awaited and the last answer of the condition (`Err`).
#[track_caller]
pub fn wait_for<T, E: Debug>(what: &str, deadline: Duration, mut condition: impl FnMut() -> Result<T, E>) -> T {
    let started = Instant::now();
    loop {
        match condition() {
            Ok(value) => return value,
            Err(seen) if started.elapsed() >= deadline => {
                panic!("waited {:.1} s for: {what}; last seen: {seen:?}", deadline.as_secs_f32())
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// [`wait_for`] a plain condition.
#[track_caller]
pub fn wait_until(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) {
    wait_for(what, deadline, || if condition() { Ok(()) } else { Err("not yet") });
}

/// The opposite: checks that `condition` holds for the whole time.
#[track_caller]
pub fn holds_for<E: Debug>(what: &str, time: Duration, mut condition: impl FnMut() -> Result<(), E>) {
    let started = Instant::now();
    while started.elapsed() < time {
        if let Err(seen) = condition() {
            panic!("for {:.1} s only, not for {time:?}: {what}; seen: {seen:?}", started.elapsed().as_secs_f32());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
