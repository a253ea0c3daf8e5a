//! Threads that begin together.

use parking_lot::{Condvar, Mutex};
use std::time::Instant;

/// A place where so many threads wait for each other, once: a barrier that nobody waits at for ever.
pub struct Gathering {
    missing: Mutex<u32>,
    all: Condvar,
}

impl Gathering {
    /// For so many threads.
    pub fn of(threads: u32) -> Self {
        Self { missing: Mutex::new(threads), all: Condvar::new() }
    }

    /// Waits until all have come, or until the deadline. Who comes again, after all have, does not wait.
    pub fn come(&self, deadline: Instant) {
        let mut missing = self.missing.lock();
        *missing = missing.saturating_sub(1);
        if *missing == 0 {
            self.all.notify_all();
        }
        while *missing > 0 && !self.all.wait_until(&mut missing, deadline).timed_out() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;
    use std::time::Duration;

    /// Comes, and must not wait in vain.
    fn come(gathering: &Gathering) {
        let late = Instant::now() + Duration::from_secs(30);
        gathering.come(late);
        assert!(Instant::now() < late, "somebody was still waited for");
    }

    #[test]
    fn nobody_begins_before_all_have_come() {
        let (gathering, came) = (Gathering::of(3), AtomicU32::new(0));
        thread::scope(|scope| {
            for number in 0..3 {
                let (gathering, came) = (&gathering, &came);
                scope.spawn(move || {
                    thread::sleep(Duration::from_millis(number * 20));
                    came.fetch_add(1, Ordering::SeqCst);
                    come(gathering);
                    assert_eq!(came.load(Ordering::SeqCst), 3);
                });
            }
        });
        // A second time there is nobody to wait for.
        come(&gathering);
    }

    #[test]
    fn who_is_alone_begins_alone_in_the_end() {
        Gathering::of(2).come(Instant::now());
    }
}
