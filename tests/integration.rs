//! The only integration test binary. Suites that need a broker skip, with a printed reason, where there is none.

mod support;

mod integration {
    /// What a producer of nonsense can do: nothing.
    mod kafka_bad_input;
    /// STOP to suppression, START to permission.
    mod kafka_end_to_end;
    /// One outcome for each input, whatever happens.
    mod kafka_exactly_once;
    /// No leak; in doubt, hold.
    mod kafka_fence;
    /// The tests' own broker and client.
    mod kafka_harness;
    /// Compaction, positions out of range, broker restarts.
    mod kafka_restore;
    /// Missing and wrong topics; refusals.
    mod kafka_start;
}
