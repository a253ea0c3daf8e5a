//! The law of opt-outs: pure, data in, data out.
//!
//! # Glossary
//!
//! One word, one thing, in code, metrics, logs, headers and documents.
//!
//! | word | means |
//! |---|---|
//! | record | what Kafka holds: key, value, headers, coordinates |
//! | message | what a person sent to a business |
//! | send | one intended contact of a business with a person |
//! | act | what a person asked for: an opt-out or an opt-in, at a time |
//! | consent record | an act as written to the opt-outs topic, with its evidence |
//! | view | the opt-outs topic materialized in memory: the suppression set and what was seen beside it |
//! | fence | the gate between a received send and its decision: opens when the view holds all that was acknowledged |
//! | decision | allowed or suppressed, with a reason |
//! | hold | not decided yet: the partition is paused, and says why |
//! | dead letter | a record that cannot be read, set aside with coordinates and reason |
//! | cause | the opt-outs record that suppresses a send, as `partition@offset` |
//!
//! # What this layer must never know
//!
//! Bytes, JSON, protobuf, Kafka, files, clocks, logs, metrics, threads. Time and chance are arguments.

pub mod business;
pub mod classify;
pub mod consent;
pub mod decide;
pub mod guidance;
pub mod history;
pub mod identity;
pub mod key;
pub mod message;
pub mod phone;
pub mod question;
pub mod reply;
pub mod rules;
pub mod send;
pub mod suppression;
pub mod time;
pub mod view;
