//! How long the allocator keeps pages that are free.
//!
//! The client allocates and frees megabytes for each request that it writes and each answer that it reads. mimalloc gives
//! everything that is free back to the system once a second, and the system clears each page when it is wanted again:
//! a tenth to a quarter of the processor time of a send, for 30 MB of 340 that would come and go.

use libmimalloc_sys::{mi_option_get, mi_option_set, mi_option_t};
use std::ffi::c_long;

/// `mi_option_purge_delay` of mimalloc 3: the binding has no name for it.
const PURGE_DELAY: mi_option_t = 15;
/// What it is unless somebody says otherwise, in milliseconds.
const DEFAULT_MS: c_long = 1000;
/// Long beside transactions and batches. At a minute, a process on a busy machine grew from one peak to the next: 230 MB
/// became 300.
const KEPT_MS: c_long = 10_000;

/// Has free pages kept for ten seconds. Who has set `MIMALLOC_PURGE_DELAY` is left their wish. To be called at the start.
pub fn keep_free_pages() {
    // SAFETY: both calls read and write one number among the allocator's settings, from any thread; a number that is no
    // option's is ignored.
    unsafe {
        if mi_option_get(PURGE_DELAY) == DEFAULT_MS {
            mi_option_set(PURGE_DELAY, KEPT_MS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_is_the_one_that_is_meant() {
        keep_free_pages();
        // SAFETY: as above.
        assert_eq!(unsafe { mi_option_get(PURGE_DELAY) }, KEPT_MS, "another version of mimalloc: look its options up");
    }
}
