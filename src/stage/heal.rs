//! What compaction would get wrong: it keeps the last record of a key, where the act that stands may lie before it.
//!
//! Whoever heals reads the topic once, from its beginning to its end, and appends what [`Healing::due`] names: the
//! standing record again, bytes as they are, so that the last record of each key is the one that stands. Only keys with
//! such a record are kept in memory beside one rank for each key.

use super::apply::Written;
use crate::domain::business::Businesses;
use crate::domain::consent::{Act, Position};
use crate::domain::key::ConsentKey;
use crate::wire::consent::{ConsentChange, decode_key, decode_value};
use std::collections::HashMap;

/// A record that must be appended again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    pub key: Vec<u8>,
    pub value: Vec<u8>,
    /// Where it lies now.
    pub at: Position,
}

struct Standing {
    act: Act,
    /// Key and value of the standing record, from when an older act came to lie behind it.
    value: Vec<u8>,
    key: Vec<u8>,
    /// Whether an older act lies behind it.
    behind: bool,
}

/// Reads a topic for what must be healed.
#[derive(Default)]
pub struct Healing {
    keys: HashMap<ConsentKey, Standing>,
}

impl Healing {
    /// The next record of the topic; in the order of each partition.
    pub fn read(&mut self, record: &Written<'_>, businesses: &Businesses) {
        let key_bytes = record.key.unwrap_or_default();
        let Ok(key) = decode_key(key_bytes, businesses) else { return };
        let act = match decode_value(record.value, record.timestamp_ms, record.at) {
            ConsentChange::Erasure => {
                self.keys.remove(&key);
                return;
            }
            ConsentChange::Unreadable(act) | ConsentChange::Act { act, .. } => act,
        };
        match self.keys.get_mut(&key) {
            Some(standing) if standing.act.rank() > act.rank() => standing.behind = true,
            Some(_) | None => {
                let value = record.value.unwrap_or_default().to_vec();
                self.keys.insert(key, Standing { act, value, key: key_bytes.to_vec(), behind: false });
            }
        }
    }

    /// What must be appended, in order of position.
    pub fn due(self) -> Vec<Due> {
        let behind = self.keys.into_values().filter(|standing| standing.behind);
        let mut due: Vec<Due> = behind.map(|standing| Due { key: standing.key, value: standing.value, at: standing.act.cause }).collect();
        due.sort_by_key(|due| due.at);
        due
    }
}
