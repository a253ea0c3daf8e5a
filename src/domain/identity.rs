//! Who a message came from or a send goes to: typed identifiers, never bare strings.

use super::phone::Phone;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use smallvec::SmallVec;
use std::fmt;

/// One identifier of one person, as stable as its kind allows.
///
/// The order of the kinds is the order in which one of several names a reply: phone, business-scoped id, e-mail, other.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Identity {
    /// An international phone number, canonical.
    Phone(Phone),
    /// Meta's business-scoped user id, also its parent form (`US.ENT.…`). Compared to the letter.
    Bsuid(Box<str>),
    /// An e-mail address, lower-cased as a whole: providers that tell cases apart in the local part are not known to
    /// exist among those that send marketing, and folding falls on the silent side.
    Email(Box<str>),
    /// An identifier of the business's own making.
    Ext(Box<str>),
    /// A keyed hash of another identity: what protects a person after an erasure.
    Hash(Box<str>),
}

/// Longest identifier accepted, in bytes. Meta's parent ids have at most 135; e-mail addresses 254.
pub const MAX_IDENTITY_BYTES: usize = 512;

/// A text that names nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an identity: expected an international phone number, or bsuid:, email: or ext: and a value")]
pub struct NotAnIdentity;

impl Identity {
    /// Reads `+5511912345678`, `5511912345678`, `whatsapp:+55…`, `phone:+55…`, `bsuid:…`, `email:…`, `ext:…`, `hash:…`.
    pub fn parse(text: &str) -> Result<Self, NotAnIdentity> {
        let text = text.trim();
        // The bound is the value's: what a constructor made must read back, prefix and all.
        if text.len() > MAX_IDENTITY_BYTES + "phone:".len() {
            return Err(NotAnIdentity);
        }
        if text.starts_with('+') {
            // No prefix begins like this.
            return Phone::parse(text).map(Self::Phone).ok_or(NotAnIdentity);
        }
        match text.split_once(':') {
            Some(("phone", number)) => Phone::parse(number).map(Self::Phone).ok_or(NotAnIdentity),
            Some(("bsuid", id)) => Self::bsuid(id).ok_or(NotAnIdentity),
            Some(("email", address)) => Self::email(address).ok_or(NotAnIdentity),
            Some(("ext", id)) => non_empty(id).map(|id| Self::Ext(id.into())).ok_or(NotAnIdentity),
            Some(("hash", digest)) => non_empty(digest).map(|digest| Self::Hash(digest.into())).ok_or(NotAnIdentity),
            Some(_) | None => Phone::parse(text).map(Self::Phone).ok_or(NotAnIdentity),
        }
    }

    /// Reads what [`Identity::parse`] reads, and what providers write without a prefix where the kind shows by itself:
    /// a business-scoped id (`US.7001…`, `US.ENT.…`) or an e-mail address.
    pub fn recognise(text: &str) -> Result<Self, NotAnIdentity> {
        Self::parse(text).or_else(|not| {
            let text = text.trim();
            let unprefixed = if looks_like_bsuid(text) { Self::bsuid(text) } else { Self::email(text) };
            unprefixed.filter(|_| text.len() <= MAX_IDENTITY_BYTES && !text.contains(':')).ok_or(not)
        })
    }

    /// A business-scoped user id as Meta writes it; `None` where it is empty.
    pub fn bsuid(id: &str) -> Option<Self> {
        non_empty(id).map(|id| Self::Bsuid(id.into()))
    }

    /// An e-mail address; `None` without exactly the shape `local@domain`.
    pub fn email(address: &str) -> Option<Self> {
        let address = address.trim();
        let (local, domain) = address.rsplit_once('@')?;
        let plausible = !local.is_empty() && !domain.is_empty() && !address.chars().any(char::is_whitespace);
        let folded = address.to_lowercase();
        (plausible && folded.len() <= MAX_IDENTITY_BYTES).then(|| Self::Email(folded.into()))
    }

    /// The kind's prefix in keys and inputs, without the colon.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Phone(_) => "phone",
            Self::Bsuid(_) => "bsuid",
            Self::Email(_) => "email",
            Self::Ext(_) => "ext",
            Self::Hash(_) => "hash",
        }
    }

    /// Appends the canonical text, `phone:+5511912345678`: what keys and fingerprints are made of.
    pub fn write_to(&self, out: &mut String) {
        out.push_str(self.kind());
        out.push(':');
        match self {
            Self::Phone(phone) => {
                out.push('+');
                out.push_str(phone.as_str());
            }
            Self::Bsuid(value) | Self::Email(value) | Self::Ext(value) | Self::Hash(value) => out.push_str(value),
        }
    }

    /// The canonical text as a string of its own.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        self.write_to(&mut text);
        text
    }
}

/// The operator's secret under which identities are hashed: who has it can tell whether a hash is that of an address, and
/// nobody else. Losing it loses the protection of whoever was erased.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct IdentityKey([u8; 32]);

impl IdentityKey {
    /// The key that a secret text gives: its SHA-256.
    pub fn of_secret(secret: &str) -> Self {
        Self(Sha256::digest(secret).into())
    }

    /// HMAC-SHA-256 of the canonical text, in hexadecimal digits: what stands behind `hash:`.
    pub fn digest(&self, identity: &Identity) -> [u8; 64] {
        let mut text = String::new();
        identity.write_to(&mut text);
        self.digest_of(&text)
    }

    /// The same of a text that may hold an address, such as a provider's message id.
    pub fn digest_of(&self, text: &str) -> [u8; 64] {
        // HMAC takes keys of any length.
        let Ok(mut hmac) = Hmac::<Sha256>::new_from_slice(&self.0) else { unreachable!("a key of 32 bytes") };
        hmac.update(text.as_bytes());
        let mut digits = [0; 64];
        for (pair, byte) in digits.chunks_exact_mut(2).zip(hmac.finalize().into_bytes()) {
            pair.copy_from_slice(&[b"0123456789abcdef"[usize::from(byte >> 4)], b"0123456789abcdef"[usize::from(byte & 15)]]);
        }
        digits
    }

    /// The identity under its hash; a hash is left as it is.
    pub fn hash(&self, identity: &Identity) -> Identity {
        match identity {
            Identity::Hash(_) => identity.clone(),
            Identity::Phone(_) | Identity::Bsuid(_) | Identity::Email(_) | Identity::Ext(_) => {
                Identity::Hash(String::from_utf8_lossy(&self.digest(identity)).into())
            }
        }
    }
}

impl fmt::Debug for IdentityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdentityKey(…)")
    }
}

/// Two letters of a country, a dot, then letters, digits and dots.
fn looks_like_bsuid(text: &str) -> bool {
    match text.as_bytes() {
        [a, b, b'.', rest @ ..] => {
            a.is_ascii_uppercase()
                && b.is_ascii_uppercase()
                && !rest.is_empty()
                && rest.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'.')
        }
        _ => false,
    }
}

fn non_empty(text: &str) -> Option<&str> {
    let text = text.trim();
    (!text.is_empty() && text.len() <= MAX_IDENTITY_BYTES).then_some(text)
}

impl fmt::Debug for Identity {
    /// Addresses never reach logs or panics: the kind alone is shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({}:…)", self.kind())
    }
}

/// The identities that one message or send names: at least one, sorted, without repeats.
#[derive(Clone, PartialEq, Eq)]
pub struct Identities(SmallVec<[Identity; 1]>);

impl Identities {
    /// `None` where nobody is named.
    pub fn new(identities: impl IntoIterator<Item = Identity>) -> Option<Self> {
        let mut identities: SmallVec<[Identity; 1]> = identities.into_iter().collect();
        identities.sort_unstable();
        identities.dedup();
        (!identities.is_empty()).then_some(Self(identities))
    }

    /// The first of phone, bsuid, e-mail, ext: the one that names a reply.
    pub fn first(&self) -> &Identity {
        &self.0[0] // never empty: see `new`
    }

    /// All of them, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Identity> {
        self.0.iter()
    }
}

impl From<Identity> for Identities {
    fn from(one: Identity) -> Self {
        Self(SmallVec::from_buf([one]))
    }
}

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.0).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, canonical: &str) {
        assert_eq!(Identity::parse(text).expect("an identity").to_text(), canonical);
    }

    #[test]
    fn an_identity_is_hashed_under_a_key_as_any_tool_would() {
        // printf %s phone:+12025550143 | openssl dgst -sha256 -mac HMAC -macopt hexkey:$(printf %s secret | sha256sum | cut -c1-64)
        let key = IdentityKey::of_secret("secret");
        let hashed = key.hash(&Identity::parse("+12025550143").expect("an identity"));
        assert_eq!(hashed.to_text(), "hash:1690024608062ed120cdb0018bed74c7698f6523ff88e59d1eafcf92721de18f");
        assert_eq!(key.hash(&hashed), hashed, "a hash is not hashed again");
        assert_eq!(Identity::parse(&hashed.to_text()), Ok(hashed));
    }

    #[test]
    fn every_kind_has_one_canonical_text() {
        check("5511912345678", "phone:+5511912345678");
        check("phone:+55 11 91234-5678", "phone:+5511912345678");
        check("bsuid:US.70011223344556677", "bsuid:US.70011223344556677");
        check("email:Ada@Example.COM", "email:ada@example.com");
        check("ext:customer 42", "ext:customer 42");
    }

    #[test]
    fn what_shows_its_kind_needs_no_prefix() {
        for (text, canonical) in [
            ("US.ENT.90011223344556677", "bsuid:US.ENT.90011223344556677"),
            ("Ada@example.com", "email:ada@example.com"),
            ("12025550143@s.whatsapp.net", "phone:+12025550143"),
            ("+12025550143", "phone:+12025550143"),
        ] {
            assert_eq!(Identity::recognise(text).expect("an identity").to_text(), canonical);
        }
        for text in ["hello", "US.", "xx.1", "lid:ada@example.com", ""] {
            assert!(Identity::recognise(text).is_err(), "{text}");
        }
    }

    #[test]
    fn canonical_texts_read_back_as_themselves() {
        for text in ["phone:+541123456789", "bsuid:BR.ENT.1", "email:a@b.c", "ext:x:y", "hash:00ff"] {
            check(text, text);
        }
    }

    #[test]
    fn a_text_that_names_nobody_is_refused() {
        for text in ["", "bsuid:", "email:nobody", "ext: ", "hello", "phone:abc", "lid:123456789012345"] {
            assert!(Identity::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn several_identities_are_sorted_so_that_the_phone_names_the_reply() {
        let named = ["ext:9", "bsuid:US.1", "+12025550143", "+1 202 555 0143"];
        let identities = Identities::new(named.iter().map(|text| Identity::parse(text).expect("one"))).expect("some");
        assert_eq!(identities.first().to_text(), "phone:+12025550143");
        assert_eq!(identities.iter().count(), 3);
    }

    #[test]
    fn whatever_a_constructor_made_reads_back_at_any_length() {
        for length in [1, 400, 500, 506, 507, 511, 512, 513, 600] {
            let value = "a".repeat(length);
            let made = [Identity::bsuid(&value), Identity::email(&format!("{value}@b.example")), Identity::parse(&format!("ext:{value}")).ok()];
            for identity in made.into_iter().flatten() {
                assert_eq!(Identity::parse(&identity.to_text()), Ok(identity), "{length}");
            }
        }
    }

    #[test]
    fn debug_output_shows_no_address() {
        let shown = format!("{:?}", Identity::parse("email:ada@example.com").expect("one"));
        assert!(!shown.contains("ada"), "{shown}");
    }
}
