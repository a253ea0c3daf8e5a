//! The only integration test binary. Suites that need a broker skip, with a printed reason, where there is none.

#![allow(clippy::disallowed_methods)] // tests wait and measure
#![allow(unreachable_pub)] // one binary: nothing in it is reachable from elsewhere

mod support;

mod integration {
    /// The console in a real browser.
    mod console;
    /// The embedded broker's account of itself.
    mod demo;
    /// Precision and recall of detection on the labelled set.
    mod detection;
    /// Bytes that nobody meant, by the million.
    mod fuzz;
    /// The HTTP API, asked by hand.
    mod kafka_api;
    /// What a producer of nonsense can do: nothing.
    mod kafka_bad_input;
    /// Measurements on the user's own broker.
    mod kafka_bench;
    /// Three brokers, of which one after the other is away.
    mod kafka_cluster;
    /// Questions, answers, and sends that say how to opt out.
    mod kafka_conversation;
    /// STOP to suppression, START to permission.
    mod kafka_end_to_end;
    /// One outcome for each input, whatever happens.
    mod kafka_exactly_once;
    /// One person's story.
    mod kafka_explain;
    /// No leak; in doubt, hold.
    mod kafka_fence;
    /// The worst moment, many times.
    mod kafka_freshness;
    /// What a member of a group is handed while the group asks something.
    mod kafka_group;
    /// The tests' own broker and client.
    mod kafka_harness;
    /// The unsubscribe list, by hand and by file.
    mod kafka_list;
    /// Delays, cuts and silence between program and broker.
    mod kafka_network;
    /// Addresses and texts stay where they belong.
    mod kafka_privacy;
    /// Stretches of a topic, read to their end.
    mod kafka_range;
    /// What was decided, decided again.
    mod kafka_replay;
    /// A period in figures.
    mod kafka_report;
    /// Compaction, positions out of range, broker restarts.
    mod kafka_restore;
    /// TLS, SASL, and no right more than is needed.
    mod kafka_security;
    /// The snapshot: restarts, kills, files that do not fit, a full disk.
    mod kafka_snapshot;
    /// Under load for long, and with more to read than fits into memory.
    mod kafka_soak;
    /// Missing and wrong topics; refusals.
    mod kafka_start;
    /// Kills at random, and members that wake up too late.
    mod kafka_torture;
    /// Transactions at the client itself.
    mod kafka_transaction;
    /// Conversations from text files.
    mod scenarios;
    /// Whole worlds in memory, by seed.
    mod simulation;
}
