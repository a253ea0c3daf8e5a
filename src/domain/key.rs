//! What an act of consent is about: business, channel, person and subject; and which keys cover which.

use super::identity::Identity;
use std::fmt;

/// Where a message travels. A consent is given and withdrawn per channel unless a policy says [`Channel::Any`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Channel {
    /// Every channel: written when the business's policy makes an opt-out cross-channel. Written `*`.
    Any,
    Whatsapp,
    /// SMS, and the bearers that share its consent: MMS and RCS.
    Sms,
    Email,
    Voice,
    /// Any other channel by its lower-cased name.
    Other(Box<str>),
}

impl Channel {
    /// Reads a channel's name in any case; `None` where it is empty. `mms` and `rcs` are `sms`.
    pub fn parse(name: &str) -> Option<Self> {
        let name = name.trim();
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        Some(if name.is_empty() {
            return None;
        } else if is("whatsapp") {
            Self::Whatsapp
        } else if is("sms") || is("mms") || is("rcs") {
            Self::Sms
        } else if is("email") || is("e-mail") {
            Self::Email
        } else if is("voice") {
            Self::Voice
        } else if name == "*" {
            Self::Any
        } else {
            Self::Other(name.to_lowercase().into())
        })
    }

    /// The name as it stands in keys.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Any => "*",
            Self::Whatsapp => "whatsapp",
            Self::Sms => "sms",
            Self::Email => "email",
            Self::Voice => "voice",
            Self::Other(name) => name,
        }
    }

    /// Whether an act on this channel speaks for `other` too.
    pub fn covers(&self, other: &Self) -> bool {
        *self == Self::Any || self == other
    }
}

/// What the act concerns.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// Every marketing message: what a bare STOP means.
    Marketing,
    /// One programme of the business (`STOP promotions`), by its lower-cased id.
    Program(Box<str>),
    /// Every message, utility included.
    All,
    /// A message that may or may not have been an opt-out, until a person has judged it.
    Review,
}

/// The programme of a marketing send that names none, and the one that generic words (promotions, offers, ads) stop.
/// So "STOP promotions" stops campaigns that were never given a programme.
pub const DEFAULT_PROGRAM: &str = "promotions";

impl Subject {
    /// The programme with this id, lower-cased; `None` where the id is empty.
    pub fn program(id: &str) -> Option<Self> {
        let id = id.trim();
        (!id.is_empty()).then(|| Self::Program(id.to_lowercase().into()))
    }

    /// Reads `marketing`, `all`, `review`, `program:ID`.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "marketing" => Some(Self::Marketing),
            "all" => Some(Self::All),
            "review" => Some(Self::Review),
            _ => Self::program(text.strip_prefix("program:")?),
        }
    }

    /// Whether an opt-in on this subject speaks for `other` too: `all` covers `marketing`, which covers programmes and
    /// `review`; each covers itself.
    pub fn covers(&self, other: &Self) -> bool {
        match self {
            Self::All => true,
            Self::Marketing => *other != Self::All,
            Self::Program(_) | Self::Review => self == other,
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Marketing => f.write_str("marketing"),
            Self::Program(id) => write!(f, "program:{id}"),
            Self::All => f.write_str("all"),
            Self::Review => f.write_str("review"),
        }
    }
}

/// The key of one consent state: the latest act on it decides.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConsentKey {
    /// The business by its configured name, or by the account id or number that stands for it.
    pub business: Box<str>,
    pub channel: Channel,
    pub identity: Identity,
    pub subject: Subject,
}

impl fmt::Debug for ConsentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConsentKey({}|{}|{:?}|{})", self.business, self.channel.as_str(), self.identity, self.subject)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_read_in_any_case_and_bearers_of_sms_share_its_consent() {
        assert_eq!(Channel::parse("WhatsApp"), Some(Channel::Whatsapp));
        assert_eq!(Channel::parse("MMS"), Some(Channel::Sms));
        assert_eq!(Channel::parse("rcs"), Some(Channel::Sms));
        assert_eq!(Channel::parse("Telegram"), Some(Channel::Other("telegram".into())));
        assert_eq!(Channel::parse(" "), None);
    }

    #[test]
    fn all_covers_marketing_which_covers_programmes_and_review() {
        let program = Subject::program("News").expect("an id");
        for (coverer, covered, expected) in [
            (&Subject::All, &Subject::Marketing, true),
            (&Subject::All, &program, true),
            (&Subject::All, &Subject::Review, true),
            (&Subject::Marketing, &program, true),
            (&Subject::Marketing, &Subject::Review, true),
            (&Subject::Marketing, &Subject::All, false),
            (&program, &Subject::Marketing, false),
            (&Subject::Review, &program, false),
            (&program, &program, true),
        ] {
            assert_eq!(coverer.covers(covered), expected, "{coverer} over {covered}");
        }
    }

    #[test]
    fn subjects_read_back_as_written() {
        for text in ["marketing", "all", "review", "program:news"] {
            assert_eq!(Subject::parse(text).expect("a subject").to_string(), text);
        }
        assert_eq!(Subject::parse("program:"), None);
        assert_eq!(Subject::parse("everything"), None);
    }
}
