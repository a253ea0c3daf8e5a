//! The opt-outs topic, materialized: the suppression set, how far it has come, and what was seen beside it.

use super::consent::Act;
use super::key::{ConsentKey, Subject};
use super::suppression::{Applied, PersonPrint, PrintKey, SlotPrint, SuppressionSet};
use std::collections::{BTreeSet, HashMap};

/// The state of all consent at one position of the opt-outs topic.
pub struct ConsentView {
    set: SuppressionSet,
    /// Next offset to apply, by partition.
    applied: Vec<u64>,
    /// Every business that a key names, with the programmes seen in its keys.
    businesses: HashMap<Box<str>, BTreeSet<Box<str>>>,
    /// For keys that were opted in: a hash of the message that last did so, to recognise its redelivery.
    opt_in_messages: HashMap<(u64, u64), u64>,
    older_acts: u64,
}

impl ConsentView {
    /// An empty view of a topic of that many partitions, before its first record.
    pub fn new(print_key: PrintKey, partitions: u32) -> Self {
        Self {
            set: SuppressionSet::new(print_key),
            applied: vec![0; partitions as usize],
            businesses: HashMap::new(),
            opt_in_messages: HashMap::new(),
            older_acts: 0,
        }
    }

    /// Lets an act count. `provider_message_id` may be empty.
    pub fn apply(&mut self, key: &ConsentKey, act: Act, provider_message_id: &str) -> Applied {
        let programs = match self.businesses.get_mut(&key.business) {
            Some(programs) => programs,
            None => self.businesses.entry(key.business.clone()).or_default(),
        };
        if let Subject::Program(id) = &key.subject
            && !programs.contains(id)
        {
            programs.insert(id.clone());
        }
        if act.state == super::consent::ConsentState::OptedIn && !provider_message_id.is_empty() {
            self.opt_in_messages.insert(self.message_key(key), message_print(provider_message_id));
        }
        let applied = self.set.apply(key, act);
        if applied == Applied::Older {
            self.older_acts += 1;
        }
        applied
    }

    /// Forgets a key.
    pub fn erase(&mut self, key: &ConsentKey) {
        self.set.erase(key);
        self.opt_in_messages.remove(&self.message_key(key));
    }

    /// Everything of a partition before `next` is in the view. Positions never go back: a log that does is restored
    /// into a new view.
    pub fn advance(&mut self, partition: u32, next: u64) {
        if let Some(applied) = self.applied.get_mut(partition as usize) {
            *applied = next.max(*applied);
        }
    }

    /// Next offset to apply, by partition: the position at which a look-up is made.
    pub fn applied(&self) -> &[u64] {
        &self.applied
    }

    /// The act that stands for a person in a slot.
    pub fn standing(&self, person: PersonPrint, slot: SlotPrint) -> Option<Act> {
        self.set.standing(person, slot).copied()
    }

    /// Whether any act of this person stands.
    pub fn knows(&self, person: PersonPrint) -> bool {
        self.set.knows(person)
    }

    /// Whether this message is the one that last opted the key in: its redelivery must not count again, with a later
    /// time, over an opt-out in between.
    pub fn opted_in_by(&self, key: &ConsentKey, provider_message_id: &str) -> bool {
        !provider_message_id.is_empty() && self.opt_in_messages.get(&self.message_key(key)) == Some(&message_print(provider_message_id))
    }

    /// Whether any key names this business.
    pub fn knows_business(&self, business: &str) -> bool {
        self.businesses.contains_key(business)
    }

    /// The programmes seen in the keys of a business.
    pub fn programs(&self, business: &str) -> impl Iterator<Item = &str> {
        self.businesses.get(business).into_iter().flatten().map(|id| &**id)
    }

    /// The set itself, for figures.
    pub fn set(&self) -> &SuppressionSet {
        &self.set
    }

    /// How often an older act lay behind a newer one: keys that need healing before compaction may touch them.
    pub fn older_acts(&self) -> u64 {
        self.older_acts
    }

    /// The key under which fingerprints are made.
    pub fn print_key(&self) -> PrintKey {
        self.set.print_key()
    }

    fn message_key(&self, key: &ConsentKey) -> (u64, u64) {
        let prints = self.set.print_key();
        (prints.person(&key.business, &key.identity).bits(), prints.slot(&key.channel, &key.subject).bits())
    }
}

/// FNV-1a of a message id: only equality matters, and ids of one person's messages are few.
fn message_print(id: &str) -> u64 {
    id.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::consent::{ConsentState, Position, Source};
    use crate::domain::identity::Identity;
    use crate::domain::key::Channel;
    use crate::domain::time::Timestamp;

    fn key(subject: &str) -> ConsentKey {
        ConsentKey {
            business: "acme".into(),
            channel: Channel::Whatsapp,
            identity: Identity::parse("ext:1").expect("an identity"),
            subject: Subject::parse(subject).expect("a subject"),
        }
    }

    fn act(state: ConsentState, at: i64) -> Act {
        Act {
            state,
            occurred_at: Timestamp::from_millis(at).expect("in range"),
            source: Source::default(),
            cause: Position { partition: 0, offset: 0 },
            changed_state: true,
        }
    }

    #[test]
    fn a_redelivered_opt_in_is_recognised_after_the_opt_out_that_ended_it() {
        let mut view = ConsentView::new(PrintKey(1, 2), 1);
        view.apply(&key("marketing"), act(ConsentState::OptedIn, 1), "wamid.A");
        view.apply(&key("marketing"), act(ConsentState::OptedOut, 2), "wamid.B");
        assert!(view.opted_in_by(&key("marketing"), "wamid.A"));
        assert!(!view.opted_in_by(&key("marketing"), "wamid.B"));
        assert!(!view.opted_in_by(&key("all"), "wamid.A"));
        assert!(!view.opted_in_by(&key("marketing"), ""));
    }

    #[test]
    fn businesses_and_their_programmes_are_known_from_keys() {
        let mut view = ConsentView::new(PrintKey(1, 2), 1);
        view.apply(&key("program:news"), act(ConsentState::OptedOut, 1), "");
        assert!(view.knows_business("acme"));
        assert!(!view.knows_business("globex"));
        assert_eq!(view.programs("acme").collect::<Vec<_>>(), ["news"]);
    }

    #[test]
    fn positions_never_go_back() {
        let mut view = ConsentView::new(PrintKey(1, 2), 2);
        view.advance(1, 5);
        view.advance(1, 3);
        view.advance(7, 9);
        assert_eq!(view.applied(), [0, 5]);
    }
}
