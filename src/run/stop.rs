//! One wish that all threads share: to stop.

use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::time::Duration;

/// Whether the process is asked to stop. Clones share the wish.
#[derive(Clone, Default)]
pub struct Stop {
    inner: Arc<(Mutex<bool>, Condvar)>,
}

impl Stop {
    /// Asks everybody to stop.
    pub fn ask(&self) {
        *self.inner.0.lock() = true;
        self.inner.1.notify_all();
    }

    /// Whether somebody asked.
    pub fn is_asked(&self) -> bool {
        *self.inner.0.lock()
    }

    /// Sleeps for so long, or until somebody asks to stop.
    pub fn sleep(&self, duration: Duration) {
        let mut asked = self.inner.0.lock();
        if !*asked {
            self.inner.1.wait_for(&mut asked, duration);
        }
    }
}
