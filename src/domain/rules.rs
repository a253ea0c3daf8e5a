//! What laws and policies ask of replies and of the reach of a STOP: by country, with the day from which each line holds.
//!
//! Lines are data: built in with their sources (`src/rules.toml`), and an operator's own. They are laid over each other in order,
//! general ones first, then the country's by date, then the operator's, then the business's: a line says only what it changes.
//! Which of them held is part of the evidence, as [`InForce::version`].
//!
//! The country is the person's: by the calling code of a phone number or the prefix of a business-scoped id; else the business's.

use super::identity::Identity;
use super::reply::ReplyTexts;
use super::time::Timestamp;
use std::collections::BTreeMap;

/// How far a STOP reaches that does not say so itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StopScope {
    /// Marketing of the business from all its numbers, on the channel of the message.
    Business,
    /// The program whose number was written to, where the number has one; else as [`StopScope::Business`].
    Program,
    /// Marketing of the business on every channel.
    CrossChannel,
}

impl StopScope {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Business, Self::Program, Self::CrossChannel];

    /// The word in data and configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Business => "business",
            Self::Program => "program",
            Self::CrossChannel => "cross-channel",
        }
    }
}

/// What one line says; `None` leaves what lines before it said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Says {
    /// Opt-outs are confirmed whether or not the configuration wants confirmations.
    pub confirmation_required: Option<bool>,
    /// One text answers an opt-out: what is asked is asked in the confirmation itself.
    pub one_text: Option<bool>,
    /// Whether people may be asked why they left.
    pub feedback: Option<bool>,
    /// Whether people may be asked what they meant to stop.
    pub clarification: Option<bool>,
    pub stop_scope: Option<StopScope>,
    /// Days after an opt-out before which nobody may be asked to come back. Where no line says so, nobody is asked at all.
    pub repermission_days: Option<u32>,
    /// Words of replies that are required: they win over all others.
    pub wording: ReplyTexts,
    /// Languages of the country, for persons whose own language is not known or has no text.
    pub languages: Option<Vec<String>>,
    /// Whole messages that opt out in this country, and elsewhere mean nothing.
    pub words: Option<Vec<String>>,
}

/// A line of the rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Two letters; `None`: everywhere.
    pub country: Option<String>,
    pub from: Timestamp,
    /// The line as evidence names it, for example `US@2024-04-04`.
    pub name: String,
    pub says: Says,
}

/// All lines, and how a person's country is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleBook {
    rules: Vec<Rule>,
    /// Digits at the beginning of international numbers → country.
    calling_codes: Vec<(String, String)>,
    /// Lines of one business, and the country it is at home in.
    of_business: BTreeMap<String, (Option<String>, Vec<Rule>)>,
}

/// What holds for one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InForce {
    /// The lines that hold, by name, separated by commas.
    pub version: String,
    pub confirmation_required: bool,
    pub one_text: bool,
    pub feedback: bool,
    pub clarification: bool,
    pub stop_scope: StopScope,
    pub repermission_days: Option<u32>,
    pub wording: ReplyTexts,
    pub languages: Vec<String>,
    pub words: Vec<String>,
}

impl RuleBook {
    /// A book of these lines; those of a country are taken in order of their dates.
    pub fn new(mut rules: Vec<Rule>, calling_codes: Vec<(String, String)>) -> Self {
        rules.sort_by_key(|rule| (rule.country.is_some(), rule.from));
        Self { rules, calling_codes, of_business: BTreeMap::new() }
    }

    /// Lays an operator's lines over these.
    pub fn add(&mut self, rules: impl IntoIterator<Item = Rule>) {
        self.rules.extend(rules);
    }

    /// Lays lines of one business over all others, and says where it is at home.
    pub fn add_business(&mut self, business: &str, home: Option<String>, rules: Vec<Rule>) {
        self.of_business.insert(business.to_owned(), (home, rules));
    }

    /// Every country that lines or calling codes name.
    pub fn knows_country(&self, country: &str) -> bool {
        self.rules.iter().any(|rule| rule.country.as_deref() == Some(country)) || self.calling_codes.iter().any(|(_, known)| known == country)
    }

    /// The country of a person, where an identity tells it.
    pub fn country_of<'a>(&'a self, identity: &'a Identity) -> Option<&'a str> {
        match identity {
            Identity::Phone(phone) => {
                let fits = self.calling_codes.iter().filter(|(code, _)| phone.as_str().starts_with(code.as_str()));
                fits.max_by_key(|(code, _)| code.len()).map(|(_, country)| country.as_str())
            }
            // Meta's ids begin with the country of the number that they stand for.
            Identity::Bsuid(id) => {
                id.get(..2).filter(|country| id.as_bytes().get(2) == Some(&b'.') && country.bytes().all(|byte| byte.is_ascii_uppercase()))
            }
            Identity::Email(_) | Identity::Ext(_) | Identity::Hash(_) => None,
        }
    }

    /// What holds for a message of this person to this business at this time.
    pub fn in_force<'a>(&'a self, business: &str, person: impl Iterator<Item = &'a Identity>, at: Timestamp) -> InForce {
        let own = self.of_business.get(business);
        let mut person = person;
        let country = person.find_map(|identity| self.country_of(identity)).or_else(|| own.and_then(|(home, _)| home.as_deref()));
        let mut held = InForce {
            version: String::new(),
            confirmation_required: false,
            one_text: false,
            feedback: true,
            clarification: true,
            stop_scope: StopScope::Business,
            repermission_days: None,
            wording: ReplyTexts::default(),
            languages: Vec::new(),
            words: Vec::new(),
        };
        let all = self.rules.iter().chain(own.iter().flat_map(|(_, rules)| rules));
        for rule in all.filter(|rule| rule.from <= at && (rule.country.is_none() || rule.country.as_deref() == country)) {
            let Says { confirmation_required, one_text, feedback, clarification, stop_scope, repermission_days, wording, languages, words } =
                &rule.says;
            held.confirmation_required = confirmation_required.unwrap_or(held.confirmation_required);
            held.one_text = one_text.unwrap_or(held.one_text);
            held.feedback = feedback.unwrap_or(held.feedback);
            held.clarification = clarification.unwrap_or(held.clarification);
            held.stop_scope = stop_scope.unwrap_or(held.stop_scope);
            held.repermission_days = repermission_days.or(held.repermission_days);
            held.wording.lay(wording);
            held.languages = languages.clone().unwrap_or(held.languages);
            held.words = words.clone().unwrap_or(held.words);
            let comma = if held.version.is_empty() { "" } else { "," };
            held.version.push_str(comma);
            held.version.push_str(&rule.name);
        }
        held
    }

    /// Every word that opts out in some country.
    pub fn words(&self) -> impl Iterator<Item = &str> {
        let all = self.rules.iter().chain(self.of_business.values().flat_map(|(_, rules)| rules));
        all.flat_map(|rule| rule.says.words.iter().flatten()).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(day: i64) -> Timestamp {
        Timestamp::from_millis(day * 86_400_000).expect("in range")
    }

    fn rule(country: Option<&str>, from: i64, name: &str, says: Says) -> Rule {
        Rule { country: country.map(str::to_owned), from: at(from), name: name.to_owned(), says }
    }

    fn book() -> RuleBook {
        let codes = [("1", "US"), ("1204", "CA"), ("55", "BR")].map(|(code, country)| (code.to_owned(), country.to_owned()));
        let later = Says { stop_scope: Some(StopScope::CrossChannel), ..Says::default() };
        let us = Says { one_text: Some(true), feedback: Some(false), ..Says::default() };
        RuleBook::new(
            vec![rule(Some("US"), 20, "US@2", later), rule(Some("US"), 10, "US@1", us), rule(None, 0, "general", Says::default())],
            codes.into(),
        )
    }

    fn held(book: &RuleBook, person: &str, day: i64) -> InForce {
        let identity = Identity::recognise(person).expect("an identity");
        book.in_force("acme", [identity].iter(), at(day))
    }

    #[test]
    fn lines_hold_from_their_day_on_and_are_named() {
        let before = held(&book(), "+12025550100", 9);
        assert_eq!((before.version.as_str(), before.one_text, before.feedback), ("general", false, true));
        let between = held(&book(), "+12025550100", 10);
        assert_eq!((between.version.as_str(), between.one_text, between.stop_scope), ("general,US@1", true, StopScope::Business));
        let after = held(&book(), "bsuid:US.7001", 20);
        assert_eq!((after.version.as_str(), after.feedback, after.stop_scope), ("general,US@1,US@2", false, StopScope::CrossChannel));
    }

    #[test]
    fn the_longest_calling_code_tells_the_country_and_else_the_business_does() {
        let mut book = book();
        assert_eq!(held(&book, "+12045550100", 30).version, "general");
        assert_eq!(held(&book, "email:a@b.c", 30).version, "general");
        let quiet = Says { confirmation_required: Some(true), ..Says::default() };
        book.add_business("acme", Some("US".into()), vec![rule(None, 0, "acme's", quiet)]);
        let at_home = held(&book, "email:a@b.c", 30);
        assert_eq!((at_home.version.as_str(), at_home.confirmation_required), ("general,US@1,US@2,acme's", true));
        assert!(book.knows_country("CA") && !book.knows_country("XX"));
    }
}
