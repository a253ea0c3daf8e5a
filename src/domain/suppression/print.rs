//! Fingerprints: what the set keeps in place of addresses and names.

use crate::domain::identity::Identity;
use crate::domain::key::{Channel, Subject};
use siphasher::sip::SipHasher13;
use std::hash::Hasher;

/// The secret under which fingerprints are made, so that nobody can craft an address that collides with another. Random
/// per process or taken over with a snapshot; a fixed one makes tests repeatable.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PrintKey(pub u64, pub u64);

/// Fingerprint of a business and one of a person's identities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PersonPrint(pub(super) u64);

/// Fingerprint of a channel and a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotPrint(pub(super) u64);

impl PersonPrint {
    /// The fingerprint as a number, for side tables.
    pub fn bits(self) -> u64 {
        self.0
    }
}

impl SlotPrint {
    /// The fingerprint as a number, for side tables.
    pub fn bits(self) -> u64 {
        self.0
    }
}

impl PrintKey {
    /// The fingerprint of one person at one business.
    pub fn person(&self, business: &str, identity: &Identity) -> PersonPrint {
        let value = match identity {
            Identity::Phone(phone) => phone.digits(),
            Identity::Bsuid(value) | Identity::Email(value) | Identity::Ext(value) | Identity::Hash(value) => value.as_bytes(),
        };
        self.person_of(business, identity.kind(), value)
    }

    /// The same of an identity's parts: its kind, and its canonical value (of a phone the digits alone).
    pub fn person_of(&self, business: &str, kind: &str, value: &[u8]) -> PersonPrint {
        let mut hasher = self.hasher();
        hasher.write(b"p");
        hasher.write(business.as_bytes());
        hasher.write(&[0xff]); // no UTF-8 text holds this byte: parts cannot run into one another
        hasher.write(kind.as_bytes());
        hasher.write(&[0xff]);
        hasher.write(value);
        PersonPrint(hasher.finish())
    }

    /// The fingerprint of what an act or a send is about.
    pub fn slot(&self, channel: &Channel, subject: &Subject) -> SlotPrint {
        let mut hasher = self.hasher();
        hasher.write(b"s");
        hasher.write(channel.as_str().as_bytes());
        hasher.write(&[0xff]);
        match subject {
            Subject::Marketing => hasher.write(b"marketing"),
            Subject::All => hasher.write(b"all"),
            Subject::Review => hasher.write(b"review"),
            Subject::Program(id) => {
                hasher.write(b"program");
                hasher.write(&[0xff]);
                hasher.write(id.as_bytes());
            }
        }
        SlotPrint(hasher.finish())
    }

    fn hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_keys(self.0, self.1)
    }
}
