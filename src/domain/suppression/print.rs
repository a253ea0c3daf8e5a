//! Fingerprints: what the set keeps in place of addresses and names.

use crate::domain::identity::{Identity, IdentityKey};
use crate::domain::key::{Channel, ConsentKey, Subject};
use siphasher::sip::SipHasher13;
use std::hash::Hasher;

/// The kind of identity that most persons are known by.
const PHONE: &str = "phone";

/// Stands behind each part that is hashed: no UTF-8 text holds this byte, so that parts cannot run into one another.
const SEPARATOR: u8 = 0xff;

/// The secret under which fingerprints are made, so that nobody can craft an address that collides with another. Random
/// per process or taken over with a snapshot; a fixed one makes tests repeatable.
///
/// Where erasures must be able to protect ([`IdentityKey`]), a person is one under a plain identity and under its keyed hash;
/// what was said under a hash has a slot of its own, so that erasing one leaves the other.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PrintKey {
    secret: (u64, u64),
    identities: Option<IdentityKey>,
}

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
    /// A key of two random numbers.
    pub const fn new(one: u64, other: u64) -> Self {
        Self { secret: (one, other), identities: None }
    }

    /// The two numbers: for a snapshot, whose fingerprints they are.
    pub const fn secret(&self) -> (u64, u64) {
        self.secret
    }

    /// The same for a log in which identities may be hashed under this key.
    pub const fn with_identities(self, identities: Option<IdentityKey>) -> Self {
        Self { identities, ..self }
    }

    /// The fingerprints of a key.
    pub fn of_key(&self, key: &ConsentKey) -> (PersonPrint, SlotPrint) {
        let plain = self.slot(&key.channel, &key.subject);
        let slot = if matches!(key.identity, Identity::Hash(_)) { self.hashed(plain).unwrap_or(plain) } else { plain };
        (self.person(&key.business, &key.identity), slot)
    }

    /// The slot of what was said about the same under a hashed identity; `None` where hashes are persons of their own.
    pub fn hashed(&self, slot: SlotPrint) -> Option<SlotPrint> {
        self.identities.map(|_| {
            let mut hasher = self.hasher();
            hasher.write(b"h");
            hasher.write_u64(slot.0);
            SlotPrint(hasher.finish())
        })
    }

    /// Fingerprints of persons at one business: what they have in common is hashed once.
    pub fn of_business(&self, business: &str) -> BusinessPrints {
        let begun = self.begun(business);
        BusinessPrints { begun, phones: of_kind(begun, PHONE), identities: self.identities }
    }

    /// The fingerprint of one person at one business.
    pub fn person(&self, business: &str, identity: &Identity) -> PersonPrint {
        self.of_business(business).person(identity)
    }

    /// The same of an identity's parts: its kind, and its canonical value (of a phone the digits alone).
    pub fn person_of(&self, business: &str, kind: &str, value: &[u8]) -> PersonPrint {
        ended(of_kind(self.begun(business), kind), value)
    }

    fn begun(&self, business: &str) -> SipHasher13 {
        let mut hasher = self.hasher();
        hasher.write(b"p");
        hasher.write(business.as_bytes());
        hasher.write(&[SEPARATOR]);
        hasher
    }

    /// The fingerprint of what an act or a send is about.
    pub fn slot(&self, channel: &Channel, subject: &Subject) -> SlotPrint {
        let mut hasher = self.hasher();
        hasher.write(b"s");
        hasher.write(channel.as_str().as_bytes());
        hasher.write(&[SEPARATOR]);
        match subject {
            Subject::Marketing => hasher.write(b"marketing"),
            Subject::All => hasher.write(b"all"),
            Subject::Review => hasher.write(b"review"),
            Subject::Program(id) => {
                hasher.write(b"program");
                hasher.write(&[SEPARATOR]);
                hasher.write(id.as_bytes());
            }
        }
        SlotPrint(hasher.finish())
    }

    fn hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_keys(self.secret.0, self.secret.1)
    }
}

/// Fingerprints of persons at one business.
#[derive(Clone)]
pub struct BusinessPrints {
    /// What all of them begin with.
    begun: SipHasher13,
    /// What those of phones begin with: most persons are one.
    phones: SipHasher13,
    identities: Option<IdentityKey>,
}

impl BusinessPrints {
    /// The fingerprint of one person.
    #[inline]
    pub fn person(&self, identity: &Identity) -> PersonPrint {
        if let Some(key) = self.identities
            && !matches!(identity, Identity::Hash(_))
        {
            return ended(of_kind(self.begun, "hash"), &key.digest(identity));
        }
        match identity {
            Identity::Phone(phone) => ended(self.phones, phone.digits()),
            Identity::Bsuid(value) | Identity::Email(value) | Identity::Ext(value) | Identity::Hash(value) => {
                ended(of_kind(self.begun, identity.kind()), value.as_bytes())
            }
        }
    }
}

fn of_kind(mut begun: SipHasher13, kind: &str) -> SipHasher13 {
    begun.write(kind.as_bytes());
    begun.write(&[SEPARATOR]);
    begun
}

fn ended(mut begun: SipHasher13, value: &[u8]) -> PersonPrint {
    begun.write(value);
    PersonPrint(begun.finish())
}

impl std::fmt::Debug for BusinessPrints {
    /// The state of a keyed hash is a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BusinessPrints(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_is_the_same_by_the_whole_identity_and_by_its_parts() {
        let prints = PrintKey::new(3, 4);
        for (text, kind, value) in [
            ("phone:+12025550143", "phone", "12025550143"),
            ("bsuid:US.7001", "bsuid", "US.7001"),
            ("email:ada@example.com", "email", "ada@example.com"),
            ("ext:7", "ext", "7"),
        ] {
            let identity = Identity::parse(text).expect("an identity");
            let of_parts = prints.person_of("acme", kind, value.as_bytes());
            assert_eq!(prints.person("acme", &identity), of_parts, "{text}");
            assert_eq!(prints.of_business("acme").person(&identity), of_parts, "{text}");
            assert_ne!(prints.of_business("acm").person(&identity), of_parts, "{text}");
        }
    }
}
