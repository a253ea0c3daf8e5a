//! The configuration file as it is written: its fields, their defaults and why they are so. What the fields mean is
//! checked in the module above.

use super::{Evidence, ExcerptPolicy, FenceLevel, Identities, LogFormat};
use crate::domain::classify::{Change, Class, Override};
use crate::wire::rules::{RawReply, RawRule};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The file as written.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RawConfig {
    /// Fields of the file that have no meaning: each is a problem.
    #[serde(skip)]
    pub(super) unknown: Vec<String>,
    /// Kafka brokers, `host:port`, separated by commas.
    pub bootstrap: Option<String>,
    /// Name of this instance, stable over restarts: its workers keep their partitions and fence their zombies by it.
    pub instance: Option<String>,
    /// Worker threads of each stage; absent: see `Workers::unless_told`.
    pub workers: Option<u32>,
    pub fence: Option<FenceLevel>,
    /// Address of the HTTP server, or `off`.
    pub http: Option<String>,
    /// Where snapshots go.
    pub state_dir: Option<PathBuf>,
    pub log_format: Option<LogFormat>,
    pub evidence: Option<Evidence>,
    /// The channel of messages and sends that name none.
    pub default_channel: Option<String>,
    /// Categories that pass unless a person stopped everything.
    pub exempt_categories: Option<Vec<String>>,
    /// `partition@offset` of records on opt-outs whose unreadable key an operator has seen and accepted.
    pub acknowledged_poison: Vec<String>,
    /// The secret under which identities are hashed: needed to erase people who stay protected, and for hashed identities.
    /// Better given as `STOPGATE_IDENTITY_HASH_KEY`.
    pub identity_hash_key: Option<String>,
    /// How identities stand in keys and evidence on opt-outs.
    pub identities: Option<Identities>,
    /// Directory of language files to use instead of the built-in ones.
    pub lexicon_dir: Option<PathBuf>,
    /// Raise the silence alarm after so many minutes without an inbound record. 0: never.
    pub silence_alarm_minutes: Option<u64>,
    /// How often the view is written to `state_dir`, so that a restart reads only what came since. 0: never.
    pub snapshot_minutes: Option<u64>,
    pub groups: RawGroups,
    pub topics: RawTopics,
    pub policy: RawPolicy,
    pub feedback: RawFeedback,
    pub clarification: RawClarification,
    pub guidance: RawGuidance,
    /// Lines laid over the built-in rules by country.
    pub rule: Vec<RawRule>,
    /// Topics of inbound messages.
    pub inbound: Vec<RawInbound>,
    /// Topics of sends.
    pub sends: Vec<RawSends>,
    pub business: Vec<RawBusiness>,
    /// Words of replies in place of the built-in ones.
    pub reply: Vec<RawReply>,
    /// Who may use the HTTP API.
    pub token: Vec<RawToken>,
    /// Template id → category.
    pub templates: BTreeMap<String, String>,
    /// librdkafka settings, passed through.
    pub kafka: BTreeMap<String, String>,
}

/// Consumer groups.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct RawGroups {
    pub detect: String,
    pub filter: String,
}

impl Default for RawGroups {
    fn default() -> Self {
        Self { detect: "stopgate-detect".into(), filter: "stopgate-filter".into() }
    }
}

/// Topics that stopgate writes, and how `stopgate topics` makes them.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct RawTopics {
    pub opt_outs: String,
    pub replies: String,
    pub reviews: String,
    pub decisions: String,
    pub dead_letters: String,
    /// Why people leave. Needed where they are asked.
    pub feedback: String,
    /// When recipients last got marketing. Needed where guidance is on.
    pub guidance: String,
    /// Partitions of new topics.
    pub partitions: u32,
    /// Replicas of new topics; absent: three, or as many as there are brokers.
    pub replication: Option<u16>,
    /// For how long nothing on opt-outs is compacted and decisions are kept.
    pub audit_days: u64,
}

impl Default for RawTopics {
    fn default() -> Self {
        Self {
            opt_outs: "opt-outs".into(),
            replies: "replies".into(),
            reviews: "reviews".into(),
            decisions: "decisions".into(),
            dead_letters: "dead-letters".into(),
            feedback: "feedback".into(),
            guidance: "guidance".into(),
            partitions: 8,
            replication: None,
            // Five years: above the four that are commonly kept for claims under US law.
            audit_days: 1826,
        }
    }
}

/// What is done with what is detected.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct RawPolicy {
    pub confirmations: bool,
    pub cross_channel: bool,
    pub review_suppresses: bool,
    pub excerpt: ExcerptPolicy,
    /// How long reviewers have: ten business days at most by 47 CFR 64.1200(a)(10); default two days.
    pub review_deadline_hours: u32,
}

impl Default for RawPolicy {
    fn default() -> Self {
        Self { confirmations: true, cross_channel: false, review_suppresses: true, excerpt: ExcerptPolicy::default(), review_deadline_hours: 48 }
    }
}

/// Whether people who left are asked why, and what they may choose.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RawFeedback {
    pub enabled: bool,
    /// Reasons in place of the built-in ones: too-many, not-relevant, never-asked.
    pub reason: Vec<RawReason>,
}

/// One reason to choose.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RawReason {
    /// Stands in records and metrics: letters, digits and hyphens.
    pub id: String,
    /// Language → the words on the button.
    pub titles: BTreeMap<String, String>,
}

/// Whether people who left are asked what they meant to stop.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct RawClarification {
    pub enabled: bool,
    /// For so long an answer counts.
    pub window_hours: u32,
}

impl Default for RawClarification {
    fn default() -> Self {
        Self { enabled: false, window_hours: 24 }
    }
}

/// Whether marketing sends are marked that must say how to opt out.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct RawGuidance {
    pub enabled: bool,
    /// Days without marketing after which it is due again.
    pub gap_days: u16,
}

impl Default for RawGuidance {
    fn default() -> Self {
        Self { enabled: false, gap_days: 90 }
    }
}

/// One program of a business, which people may stop by itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RawProgram {
    /// As sends name it.
    pub id: String,
    /// As people know it; absent: the id.
    pub name: Option<String>,
    /// Numbers that send nothing else: where rules say so, a STOP to one of them stops this program.
    #[serde(default)]
    pub numbers: Vec<String>,
}

/// One topic of inbound messages.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RawInbound {
    pub topic: String,
    /// `auto`, `meta`, `ycloud`, `twilio-form`, `twilio-events`, `json`, `protobuf`, `mapping`.
    #[serde(default = "auto")]
    pub format: String,
    /// For the format `mapping`: field → JSON Pointer, or several of them.
    #[serde(default)]
    pub mapping: BTreeMap<String, OneOrMore>,
}

impl RawInbound {
    /// A topic of native JSON.
    pub fn json(topic: String) -> Self {
        Self { topic, format: "json".into(), mapping: BTreeMap::new() }
    }
}

/// One text or a list of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl OneOrMore {
    pub(super) fn as_slice(&self) -> &[String] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::More(more) => more,
        }
    }
}

/// One topic of sends.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RawSends {
    pub topic: String,
    /// `auto`, `json`, `protobuf`, `headers`.
    #[serde(default = "auto")]
    pub format: String,
    /// Decided by category alone, unfenced; anything else in it is a dead letter.
    #[serde(default)]
    pub exempt_only: bool,
    /// Default: the topic's name and `.allowed`.
    pub allowed: Option<String>,
    /// Default: the topic's name and `.suppressed`.
    pub suppressed: Option<String>,
    /// Field → JSON Pointer, where they differ from the defaults.
    #[serde(default)]
    pub mapping: BTreeMap<String, String>,
}

impl RawSends {
    /// A topic of sends in any format, its outputs named after it.
    pub fn named(topic: String) -> Self {
        Self { topic, format: auto(), exempt_only: false, allowed: None, suppressed: None, mapping: BTreeMap::new() }
    }
}

pub(super) fn auto() -> String {
    "auto".into()
}

/// One business.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RawBusiness {
    pub name: String,
    pub numbers: Vec<String>,
    pub accounts: Vec<String>,
    pub former_names: Vec<String>,
    pub confirmations: Option<bool>,
    pub cross_channel: Option<bool>,
    pub feedback: Option<bool>,
    pub clarification: Option<bool>,
    /// Where it is at home, by two letters: whose rules hold for persons whose country is not known.
    pub country: Option<String>,
    pub program: Vec<RawProgram>,
    /// Lines laid over the rules by country.
    pub rule: Vec<RawRule>,
    /// Changes to the keywords, for messages to this business.
    pub words: Vec<RawWords>,
    /// Words of replies of this business.
    pub reply: Vec<RawReply>,
}

/// One user of the HTTP API.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RawToken {
    /// Stands as the actor in the evidence of what it enters.
    pub name: String,
    #[serde(default)]
    pub role: TokenRole,
    /// SHA-256 of the token, in hexadecimal digits: `printf %s TOKEN | sha256sum`. The token itself stands in no file.
    pub sha256: String,
}

/// What a token may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenRole {
    /// Check, look up, list.
    #[default]
    Read,
    /// Enter opt-outs and opt-ins, judge reviews, and all of `read`.
    Write,
}

/// One change to the keywords of one language.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RawWords {
    pub change: WordsChange,
    pub class: WordsClass,
    /// Code of the language file.
    pub language: String,
    pub words: Vec<String>,
}

/// What is done with the words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WordsChange {
    Add,
    Remove,
    Replace,
}

/// What the words mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WordsClass {
    OptOut,
    OptIn,
    Help,
    Review,
}

impl RawWords {
    pub(super) fn meant(&self) -> Override {
        Override {
            change: match self.change {
                WordsChange::Add => Change::Add,
                WordsChange::Remove => Change::Remove,
                WordsChange::Replace => Change::Replace,
            },
            class: match self.class {
                WordsClass::OptOut => Class::OptOut,
                WordsClass::OptIn => Class::OptIn,
                WordsClass::Help => Class::Help,
                WordsClass::Review => Class::Review,
            },
            language: self.language.clone(),
            words: self.words.clone(),
        }
    }
}
