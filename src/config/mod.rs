//! Configuration: what was written (file, environment, flags) → what is meant, with every problem at once.
//!
//! Flags win over `STOPGATE_…` variables, these over the file, the file over defaults. The defaults stand here, once,
//! beside their fields. Nothing reads the environment later.

mod raw;

pub use raw::{
    OneOrMore, RawBusiness, RawClarification, RawConfig, RawFeedback, RawGroups, RawGuidance, RawInbound, RawPolicy, RawProgram, RawReason,
    RawSends, RawToken, RawTopics, RawWords, TokenRole, WordsChange, WordsClass,
};

use crate::domain::business::{Business, Businesses};
use crate::domain::classify::Override;
use crate::domain::consent::Position;
use crate::domain::identity::{Identity, IdentityKey};
use crate::domain::key::Channel;
use crate::domain::phone::PHONE_RULES_VERSION;
use crate::domain::question::{self, Program, Reason};
use crate::domain::reply::ReplyTexts;
use crate::domain::rules::{Rule, RuleBook};
use crate::domain::send::Categories;
use crate::kafka::{Connection, owned};
use crate::record::TopicName;
use crate::stage::detect::{Excerpt, Policy};
use crate::stage::filter::{GuidanceRules, SendsTopic};
use crate::wire::inbound::mapping::{Mapping, Pointers};
use crate::wire::inbound::{Format, InboundFormat};
use crate::wire::rules::{self, RawReply, RawRule};
use crate::wire::send::{SendDecoder, SendFormat, SendPointers};
use raw::auto;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

/// Which stages run in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Run,
    Detect,
    Filter,
}

impl Verb {
    /// Whether stage 1 runs.
    pub fn detects(self) -> bool {
        match self {
            Self::Run | Self::Detect => true,
            Self::Filter => false,
        }
    }

    /// Whether stage 2 runs.
    pub fn filters(self) -> bool {
        match self {
            Self::Run | Self::Filter => true,
            Self::Detect => false,
        }
    }
}

/// How fresh the view must be before a send is decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum FenceLevel {
    /// Everything acknowledged on the opt-outs topic counts.
    #[default]
    OptOuts,
    /// Everything acknowledged on the inbound topics counts, although stage 1 has not read it yet.
    Inbound,
}

/// How the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Where the evidence of allowed sends goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Evidence {
    /// Into decision blocks alone: allowed sends pass unchanged.
    #[default]
    Blocks,
    /// Into decision blocks, and into one header `stopgate` of each allowed send.
    Headers,
}

/// How identities stand on the opt-outs topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Identities {
    /// As they are: readable with any tool.
    #[default]
    Plain,
    /// As keyed hashes, with evidence that holds neither text nor spelling.
    Hashed,
}

/// How much of a message the evidence keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExcerptPolicy {
    Full,
    #[default]
    Excerpt,
    None,
}

/// What was given on the command line or in the environment: wins over the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    pub bootstrap: Option<String>,
    pub instance: Option<String>,
    pub workers: Option<u32>,
    pub fence: Option<FenceLevel>,
    pub http: Option<String>,
    pub state_dir: Option<PathBuf>,
    pub log_format: Option<LogFormat>,
}

/// Worker threads of each stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workers {
    pub detect: u32,
    pub filter: u32,
}

impl Workers {
    /// As many as there are unless somebody says otherwise. While one worker of the filter waits for its commit, the other
    /// decides. What is said once alone needs records that are keyed by person where there are several workers: confirmations
    /// of opt-outs, and guidance.
    fn unless_told(guided: bool) -> Self {
        Self { detect: 1, filter: if guided { 1 } else { 2 } }
    }
}

/// What the program means to do.
#[derive(Clone)]
pub struct Config {
    pub connection: Connection,
    pub instance: String,
    pub workers: Workers,
    pub fence: FenceLevel,
    pub http: Option<SocketAddr>,
    pub evidence: Evidence,
    pub detect_group: String,
    pub filter_group: String,
    pub topics: Topics,
    pub sends: Vec<SendsOutput>,
    pub inbound: Vec<(TopicName, InboundFormat)>,
    pub default_channel: Channel,
    pub businesses: Arc<Businesses>,
    pub categories: Categories,
    pub policy: Policy,
    pub policies: BTreeMap<String, Policy>,
    /// What holds by country.
    pub book: Arc<RuleBook>,
    /// Whether sends are marked that must say how to opt out.
    pub guidance: Option<GuidanceRules>,
    pub acknowledged_poison: BTreeSet<Position>,
    pub lexicon_dir: Option<PathBuf>,
    /// Changes to the keywords, by business.
    pub words: BTreeMap<String, Vec<Override>>,
    pub silence_alarm_minutes: u64,
    /// Where the snapshot of the view lies.
    pub state_dir: PathBuf,
    /// How often one is written; 0: never, and none is read.
    pub snapshot_minutes: u64,
    /// Under which identities are or may be hashed.
    pub identity_key: Option<IdentityKey>,
    /// The same key where what is written is written hashed.
    pub hashed: Option<IdentityKey>,
    /// Who may use the HTTP API; empty: whoever reaches a loopback address.
    pub tokens: Vec<Token>,
    /// Hash of everything in this configuration that can change a decision, the lexicon apart.
    rules: String,
    /// As written, defaults filled in: for printing.
    effective: RawConfig,
}

/// One user of the HTTP API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub name: String,
    pub role: TokenRole,
    /// SHA-256 of the token.
    pub sha256: [u8; 32],
}

/// A secret that is shorter can be guessed.
const MIN_SECRET_BYTES: usize = 16;

/// Topics that stopgate writes beside the outputs of sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topics {
    pub opt_outs: TopicName,
    pub replies: TopicName,
    pub reviews: TopicName,
    pub decisions: TopicName,
    pub dead_letters: TopicName,
    pub feedback: TopicName,
    pub guidance: TopicName,
    pub partitions: u32,
    pub replication: Option<u16>,
    pub audit_days: u64,
}

/// A topic of sends and where its outcomes go.
#[derive(Clone, Debug)]
pub struct SendsOutput {
    pub input: SendsTopic,
    pub allowed: TopicName,
    pub suppressed: TopicName,
}

/// Everything that is wrong with a configuration.
#[derive(Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<String>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let noun = if self.0.len() == 1 { "problem" } else { "problems" };
        write!(f, "the configuration has {} {noun}:", self.0.len())?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  - {problem}"))
    }
}

impl std::error::Error for Problems {}

/// Reads a file's text. What is no TOML, or of the wrong type, is told with its line; unknown fields are kept and told
/// with all other problems.
pub fn parse(text: &str, name: &str) -> Result<RawConfig, Problems> {
    // The parser's message quotes the line, which may hold a secret: only its place and reason are passed on.
    let told = |error: toml::de::Error| {
        let line = error.span().map(|span| text.get(..span.start).unwrap_or(text).matches('\n').count() + 1);
        let place = line.map_or_else(|| name.to_owned(), |line| format!("{name}:{line}"));
        // "invalid type: string "secret", expected u32": only what was expected is told.
        let reason = match error.message().rsplit_once(", expected ") {
            Some((_, expected)) => format!("expected {expected}"),
            None => error.message().to_owned(),
        };
        Problems(vec![format!("{place}: {reason}")])
    };
    let mut unknown = Vec::new();
    let parsed = toml::Deserializer::parse(text).map_err(told)?;
    let mut raw: RawConfig = serde_ignored::deserialize(parsed, |path| unknown.push(format!("{name}: unknown field {path}"))).map_err(told)?;
    raw.unknown = unknown;
    Ok(raw)
}

impl RawConfig {
    /// Lets `STOPGATE_KAFKA_SASL_PASSWORD` and its like win over the file: the way for secrets that no file should hold.
    pub fn with_environment(mut self, variables: impl Iterator<Item = (String, String)>) -> Self {
        for (name, value) in variables {
            if let Some(setting) = name.strip_prefix("STOPGATE_KAFKA_") {
                self.kafka.insert(setting.to_lowercase().replace('_', "."), value);
            } else if name == "STOPGATE_IDENTITY_HASH_KEY" {
                self.identity_hash_key = Some(value);
            }
        }
        self
    }

    /// Lets what was given on the command line win.
    pub fn overridden(mut self, by: Overrides) -> Self {
        self.bootstrap = by.bootstrap.or(self.bootstrap);
        self.instance = by.instance.or(self.instance);
        self.workers = by.workers.or(self.workers);
        self.fence = by.fence.or(self.fence);
        self.http = by.http.or(self.http);
        self.state_dir = by.state_dir.or(self.state_dir);
        self.log_format = by.log_format.or(self.log_format);
        self
    }

    /// This configuration with what decides taken from another: topics, groups and brokers stay.
    pub fn with_rules_of(mut self, other: Self) -> Self {
        self.unknown.extend(other.unknown);
        self.default_channel = other.default_channel;
        self.exempt_categories = other.exempt_categories;
        self.lexicon_dir = other.lexicon_dir;
        self.policy = other.policy;
        self.feedback = other.feedback;
        self.clarification = other.clarification;
        self.guidance = other.guidance;
        self.rule = other.rule;
        self.reply = other.reply;
        self.business = other.business;
        self.templates = other.templates;
        self
    }

    /// What is meant, or everything that is wrong. `host` is this machine's name.
    pub fn check(self, verb: Verb, host: &str) -> Result<Config, Problems> {
        let mut raw = self.with_defaults(verb);
        let mut problems = std::mem::take(&mut raw.unknown);
        let bootstrap = raw.bootstrap.clone().unwrap_or_default();
        if bootstrap.trim().is_empty() {
            problems.push("bootstrap is missing: give --bootstrap HOST:PORT".to_owned());
        }
        for name in raw.kafka.keys() {
            if let Some(why) = owned(name) {
                problems.push(format!("[kafka] {name} is stopgate's own: {why}"));
            }
        }
        if let Some(workers) = raw.workers.filter(|workers| !(1..=64).contains(workers)) {
            problems.push(format!("workers must be 1 to 64, not {workers}"));
        }
        let workers = raw.workers.map_or(Workers::unless_told(raw.guidance.enabled), |each| Workers { detect: each, filter: each });
        let http = parse_http(raw.http.as_deref().unwrap_or_default(), &mut problems);
        let instance = match (&raw.instance, http) {
            (Some(instance), _) if !instance.trim().is_empty() => instance.trim().to_owned(),
            (Some(_), _) => {
                problems.push("instance is empty".to_owned());
                String::new()
            }
            (None, Some(address)) => format!("{host}-{}", address.port()),
            (None, None) => {
                problems.push(
                    "instance is missing: with `http = off` there is no port to tell instances of a host apart; give --instance NAME".to_owned(),
                );
                String::new()
            }
        };
        let default_channel = raw.default_channel.as_deref().and_then(Channel::parse).unwrap_or(Channel::Whatsapp);
        let list: Vec<Business> = raw.business.iter().map(RawBusiness::meant).collect();
        for business in &list {
            if business.name.trim().is_empty() {
                problems.push("[[business]] without a name".to_owned());
            }
        }
        let businesses = Businesses::new(&list).unwrap_or_else(|conflicts| {
            problems.extend(conflicts.iter().map(|conflict| format!("[[business]] {conflict}")));
            Businesses::default()
        });
        let topics = raw.topics.meant(&mut problems);
        let inbound = raw.inbound.iter().filter_map(|inbound| inbound.meant(&default_channel, &mut problems)).collect();
        let sends: Vec<SendsOutput> = raw.sends.iter().filter_map(|sends| sends.meant(&mut problems)).collect();
        raw.check_topic_names(&mut problems);
        let mut policy = raw.policy.meant();
        policy.feedback = raw.feedback.enabled.then(|| raw.feedback.reasons(&mut problems));
        policy.clarification_ms = raw.clarification.enabled.then(|| raw.clarification.window_ms());
        let book = raw.book(&mut problems);
        set_replies(&mut policy.texts, &raw.reply, "[[reply]]", &mut problems);
        let acknowledged_poison = raw.acknowledged_poison.iter().filter_map(|text| {
            let position = text.parse().ok();
            if position.is_none() {
                problems.push(format!("acknowledged_poison: {text:?} is not partition@offset"));
            }
            position
        });
        let acknowledged_poison = acknowledged_poison.collect();
        let identity_key = raw.identity_hash_key.as_deref().map(IdentityKey::of_secret);
        if raw.identity_hash_key.as_deref().is_some_and(|secret| secret.len() < MIN_SECRET_BYTES) {
            problems.push(format!("identity_hash_key is shorter than {MIN_SECRET_BYTES} bytes: take 32 random ones, `openssl rand -hex 32`"));
        }
        if identity_key.is_none() && raw.identities == Some(Identities::Hashed) {
            problems.push("identities = \"hashed\" needs identity_hash_key, better given as STOPGATE_IDENTITY_HASH_KEY".to_owned());
        }
        let hashed = identity_key.filter(|_| raw.identities == Some(Identities::Hashed));
        let tokens = parse_tokens(&raw.token, &mut problems);
        let rules = raw.rules_fingerprint();
        let config = Config {
            connection: Connection { bootstrap, settings: raw.kafka.clone() },
            instance,
            workers,
            fence: raw.fence.unwrap_or_default(),
            http,
            evidence: raw.evidence.unwrap_or_default(),
            detect_group: raw.groups.detect.clone(),
            filter_group: raw.groups.filter.clone(),
            topics,
            sends,
            inbound,
            default_channel,
            businesses: Arc::new(businesses),
            categories: Categories::new(raw.exempt_categories.clone().unwrap_or_default(), raw.templates.clone()),
            policies: raw.business.iter().filter_map(|business| business.policy(&raw, &policy, &mut problems)).collect(),
            policy,
            book: Arc::new(book),
            guidance: raw.guidance.enabled.then_some(GuidanceRules { gap_days: raw.guidance.gap_days, hashed }),
            acknowledged_poison,
            lexicon_dir: raw.lexicon_dir.clone(),
            words: raw
                .business
                .iter()
                .filter(|business| !business.words.is_empty())
                .map(|business| (business.name.clone(), business.words.iter().map(RawWords::meant).collect()))
                .collect(),
            silence_alarm_minutes: raw.silence_alarm_minutes.unwrap_or_default(),
            state_dir: raw.state_dir.clone().unwrap_or_default(),
            snapshot_minutes: raw.snapshot_minutes.unwrap_or_default(),
            identity_key,
            hashed,
            tokens,
            rules,
            effective: raw,
        };
        if problems.is_empty() { Ok(config) } else { Err(Problems(problems)) }
    }

    fn with_defaults(mut self, verb: Verb) -> Self {
        let port = match verb {
            Verb::Run | Verb::Filter => 9470,
            Verb::Detect => 9471,
        };
        self.fence.get_or_insert_default();
        self.http.get_or_insert_with(|| format!("127.0.0.1:{port}"));
        self.state_dir.get_or_insert_with(|| "./stopgate-state".into());
        self.log_format.get_or_insert_default();
        self.evidence.get_or_insert_default();
        self.default_channel.get_or_insert_with(|| "whatsapp".into());
        self.exempt_categories.get_or_insert_with(|| ["utility", "authentication", "service"].map(str::to_owned).into());
        self.silence_alarm_minutes.get_or_insert(0);
        self.snapshot_minutes.get_or_insert(5);
        if self.inbound.is_empty() {
            self.inbound.push(RawInbound { topic: "inbound-messages".into(), format: auto(), mapping: BTreeMap::new() });
        }
        if self.sends.is_empty() {
            self.sends.push(RawSends::named("sends".into()));
        }
        for sends in &mut self.sends {
            sends.allowed.get_or_insert_with(|| format!("{}.allowed", sends.topic));
            sends.suppressed.get_or_insert_with(|| format!("{}.suppressed", sends.topic));
        }
        self
    }

    fn check_topic_names(&self, problems: &mut Vec<String>) {
        let topics = &self.topics;
        let own =
            [&topics.opt_outs, &topics.replies, &topics.reviews, &topics.decisions, &topics.dead_letters, &topics.feedback, &topics.guidance];
        let inputs = self.inbound.iter().map(|inbound| &inbound.topic).chain(self.sends.iter().map(|sends| &sends.topic));
        let outputs = self.sends.iter().flat_map(|sends| sends.allowed.iter().chain(&sends.suppressed));
        let mut seen = BTreeSet::new();
        for name in own.into_iter().chain(inputs).chain(outputs) {
            let legal = !name.is_empty() && name.len() <= 249 && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
            if !legal {
                problems.push(format!("{name:?} is not a topic name: letters, digits, '.', '_' and '-', at most 249"));
            } else if !seen.insert(name) {
                problems.push(format!("topic {name:?} is named twice: each topic has one use"));
            }
        }
    }

    /// A hash of what decides: the same hash, the same decisions.
    fn rules_fingerprint(&self) -> String {
        let deciding = (
            &self.business,
            &self.templates,
            &self.exempt_categories,
            (&self.policy, &self.reply, &self.feedback, &self.clarification, &self.guidance),
            (&self.rule, rules::BUILT_IN),
            &self.default_channel,
            &self.sends,
            &self.inbound,
            PHONE_RULES_VERSION,
            // Whose acts count for whom: the key itself is told by nothing that is hashed here.
            self.identity_hash_key.as_deref().map(|secret| format!("{:x?}", Sha256::digest(format!("rules {secret}")))),
            self.identities,
        );
        let text = serde_json::to_vec(&deciding).unwrap_or_default(); // plain data: nothing that could fail
        Sha256::digest(text).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
    }
}

impl Config {
    /// The version that evidence, headers and blocks name.
    pub fn rules_version(&self, lexicon_version: &str) -> String {
        format!("{lexicon_version}+{}", self.rules)
    }

    /// Under what an identity may stand on opt-outs: itself, and its hash where there is a key.
    pub fn identities_of(&self, identity: &Identity) -> Vec<Identity> {
        let hashed = self.identity_key.map(|key| key.hash(identity)).filter(|hashed| hashed != identity);
        std::iter::once(identity.clone()).chain(hashed).collect()
    }

    /// Every sends topic, inbound topic and output, and the topics beside them.
    pub fn all_topics(&self) -> Vec<&TopicName> {
        let topics = &self.topics;
        let own = [&topics.opt_outs, &topics.replies, &topics.reviews, &topics.decisions, &topics.dead_letters];
        let inbound = self.inbound.iter().map(|(topic, _)| topic);
        let sends = self.sends.iter().flat_map(|sends| [&sends.input.name, &sends.allowed, &sends.suppressed]);
        inbound.chain(own).chain(sends).chain(self.optional_topics()).collect()
    }

    /// Topics that are needed only where something is switched on.
    fn optional_topics(&self) -> impl Iterator<Item = &TopicName> {
        let topics = &self.topics;
        let why = self.asks_why().then_some(&topics.feedback);
        why.into_iter().chain(self.guidance.map(|_| &topics.guidance))
    }

    /// Whether anybody is asked why they leave: only then is there a topic for the answers.
    pub fn asks_why(&self) -> bool {
        self.policies.values().chain([&self.policy]).any(|policy| policy.feedback.is_some())
    }

    /// The effective configuration as TOML, secrets redacted.
    pub fn to_toml(&self) -> String {
        let mut shown = self.effective.clone();
        shown.bootstrap = Some(self.connection.bootstrap.clone());
        shown.instance = Some(self.instance.clone());
        shown.identity_hash_key.iter_mut().for_each(|secret| "***".clone_into(secret));
        shown.token.iter_mut().for_each(|token| "***".clone_into(&mut token.sha256));
        for (name, value) in &mut shown.kafka {
            if is_secret(name) {
                "***".clone_into(value);
            }
        }
        toml::to_string_pretty(&shown).unwrap_or_default() // it was read from TOML
    }

    /// What an operator should know although it is no mistake.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.businesses.is_empty() {
            warnings.push(
                "no [[business]] is configured: the business of a message is its provider account id, and sends must name \
                 that same id; a send that names another business is not protected (stopgate_sends_unknown_business_total counts them)"
                    .to_owned(),
            );
        }
        warnings
    }
}

/// Settings of librdkafka that hold secrets.
fn is_secret(name: &str) -> bool {
    ["password", "secret", "sasl.jaas", "key.pem", "oauthbearer.config", "client.assertion"].iter().any(|part| name.contains(part))
}

fn parse_http(text: &str, problems: &mut Vec<String>) -> Option<SocketAddr> {
    if text == "off" {
        return None;
    }
    let parsed = text.parse().ok();
    if parsed.is_none() {
        problems.push(format!("http: {text:?} is neither an address and port, such as 127.0.0.1:9470, nor off"));
    }
    parsed
}

fn set_replies(texts: &mut ReplyTexts, raw: &[RawReply], place: &str, problems: &mut Vec<String>) {
    problems.extend(raw.iter().filter_map(|reply| reply.set(texts).err()).map(|why| format!("{place} {why}")));
}

fn parse_tokens(raw: &[RawToken], problems: &mut Vec<String>) -> Vec<Token> {
    let mut tokens: Vec<Token> = Vec::new();
    for RawToken { name, role, sha256 } in raw {
        let digest = (0..32).map(|at| sha256.get(2 * at..2 * at + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok()));
        let digest = digest.collect::<Option<Vec<u8>>>().and_then(|bytes| bytes.try_into().ok()).filter(|_| sha256.len() == 64);
        match digest {
            _ if name.trim().is_empty() => problems.push("[[token]] without a name".to_owned()),
            _ if tokens.iter().any(|token| token.name == *name) => problems.push(format!("[[token]] {name:?} is named twice")),
            None => problems.push(format!("[[token]] {name:?}: sha256 is not 64 hexadecimal digits: printf %s TOKEN | sha256sum")),
            Some(sha256) => tokens.push(Token { name: name.clone(), role: *role, sha256 }),
        }
    }
    tokens
}

impl RawTopics {
    fn meant(&self, problems: &mut Vec<String>) -> Topics {
        if !(1..=100_000).contains(&self.partitions) {
            problems.push(format!("[topics] partitions must be at least 1, not {}", self.partitions));
        }
        let name = |text: &String| text.as_str().into();
        Topics {
            opt_outs: name(&self.opt_outs),
            replies: name(&self.replies),
            reviews: name(&self.reviews),
            decisions: name(&self.decisions),
            dead_letters: name(&self.dead_letters),
            feedback: name(&self.feedback),
            guidance: name(&self.guidance),
            partitions: self.partitions,
            replication: self.replication,
            audit_days: self.audit_days,
        }
    }
}

impl RawPolicy {
    fn meant(&self) -> Policy {
        Policy {
            cross_channel: self.cross_channel,
            confirmations: self.confirmations,
            review_suppresses: self.review_suppresses,
            excerpt: match self.excerpt {
                ExcerptPolicy::Full => Excerpt::Full,
                ExcerptPolicy::Excerpt => Excerpt::Around,
                ExcerptPolicy::None => Excerpt::None,
            },
            review_deadline_ms: i64::from(self.review_deadline_hours) * 60 * 60 * 1000,
            texts: ReplyTexts::default(),
            feedback: None,
            clarification_ms: None,
            // Where a business names none.
            programs: vec![Program::promotions()],
        }
    }
}

impl RawFeedback {
    /// The reasons to choose from.
    fn reasons(&self, problems: &mut Vec<String>) -> Vec<Reason> {
        if self.reason.is_empty() {
            return question::built_in_reasons();
        }
        let mut reasons: Vec<Reason> = Vec::new();
        for RawReason { id, titles } in &self.reason {
            let is_word =
                !id.is_empty() && id.len() <= 64 && id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
            if !is_word || id == question::OWN_WORDS {
                problems.push(format!("[[feedback.reason]] id {id:?}: lower-case letters, digits and hyphens, and not {}", question::OWN_WORDS));
            } else if reasons.iter().any(|reason| reason.id == *id) {
                problems.push(format!("[[feedback.reason]] {id} is named twice"));
            } else if titles.values().all(|title| title.trim().is_empty()) {
                problems.push(format!("[[feedback.reason]] {id} has no title: titles = {{ en = \"Too many\" }}"));
            }
            let titles = titles.iter().map(|(language, title)| (language.to_lowercase(), title.trim().to_owned())).collect();
            reasons.push(Reason { id: id.clone(), titles });
        }
        reasons
    }
}

impl RawClarification {
    fn window_ms(&self) -> i64 {
        i64::from(self.window_hours) * 60 * 60 * 1000
    }
}

impl RawProgram {
    fn meant(&self, business: &str, problems: &mut Vec<String>) -> Program {
        if self.id.trim().is_empty() {
            problems.push(format!("[[business]] {business} [[business.program]] without an id"));
        }
        let id = self.id.trim().to_lowercase();
        Program { name: Some(self.name.clone().unwrap_or_else(|| self.id.trim().to_owned())), id, numbers: self.numbers.clone() }
    }
}

impl RawConfig {
    /// The built-in rules by country, and the lines laid over them.
    fn book(&self, problems: &mut Vec<String>) -> RuleBook {
        let mut book = rules::built_in();
        let mut meant = |rules: &[RawRule], owner: &str, place: &str| -> Vec<Rule> {
            let meant = rules.iter().filter_map(|rule| rule.meant(Some(owner)).map_err(|why| problems.push(format!("{place}: {why}"))).ok());
            let mut meant: Vec<Rule> = meant.collect();
            meant.sort_by_key(|rule| rule.from);
            meant
        };
        book.add(meant(&self.rule, "own", "[[rule]]"));
        for business in &self.business {
            let place = format!("[[business]] {} [[business.rule]]", business.name);
            let lines = meant(&business.rule, &business.name, &place);
            let home = business.country.as_deref().map(rules::country);
            book.add_business(&business.name, home.and_then(Result::ok), lines);
        }
        for business in &self.business {
            if let Some(Err(why)) = business.country.as_deref().map(rules::country) {
                problems.push(format!("[[business]] {}: country {why}", business.name));
            }
        }
        book
    }
}

impl RawBusiness {
    fn meant(&self) -> Business {
        Business {
            name: self.name.clone(),
            numbers: self.numbers.clone(),
            accounts: self.accounts.clone(),
            former_names: self.former_names.clone(),
        }
    }

    fn policy(&self, raw: &RawConfig, common: &Policy, problems: &mut Vec<String>) -> Option<(String, Policy)> {
        let choices = [self.confirmations, self.cross_channel, self.feedback, self.clarification];
        if choices.iter().all(Option::is_none) && self.reply.is_empty() && self.program.is_empty() {
            return None;
        }
        let mut policy = common.clone();
        set_replies(&mut policy.texts, &self.reply, &format!("[[business]] {} [[business.reply]]", self.name), problems);
        policy.confirmations = self.confirmations.unwrap_or(policy.confirmations);
        policy.cross_channel = self.cross_channel.unwrap_or(policy.cross_channel);
        if let Some(asks) = self.feedback {
            policy.feedback = asks.then(|| raw.feedback.reasons(&mut Vec::new()));
        }
        if let Some(asks) = self.clarification {
            policy.clarification_ms = asks.then(|| raw.clarification.window_ms());
        }
        if !self.program.is_empty() {
            policy.programs = self.program.iter().map(|program| program.meant(&self.name, problems)).collect();
        }
        Some((self.name.clone(), policy))
    }
}

impl RawInbound {
    fn meant(&self, default_channel: &Channel, problems: &mut Vec<String>) -> Option<(TopicName, InboundFormat)> {
        let format = match self.format.as_str() {
            "mapping" => Format::Mapping(Box::new(self.mapping(problems)?)),
            name => {
                let format = Format::parse(name);
                if format.is_none() {
                    problems.push(format!("[[inbound]] {}: unknown format {name:?}", self.topic));
                }
                if !self.mapping.is_empty() {
                    problems.push(format!("[[inbound]] {}: a mapping needs format = \"mapping\"", self.topic));
                }
                format?
            }
        };
        Some((self.topic.as_str().into(), InboundFormat { format, default_channel: default_channel.clone() }))
    }

    fn mapping(&self, problems: &mut Vec<String>) -> Option<Mapping> {
        let mut pointers = Pointers::default();
        for (field, given) in &self.mapping {
            let place = match field.as_str() {
                "id" => &mut pointers.id,
                "business" => &mut pointers.business,
                "account" => &mut pointers.account,
                "channel" => &mut pointers.channel,
                "from" => &mut pointers.from,
                "to" => &mut pointers.to,
                "text" => &mut pointers.text,
                "button_payload" => &mut pointers.button_payload,
                "button_title" => &mut pointers.button_title,
                "received_at" => &mut pointers.received_at,
                "autoresponse" => &mut pointers.autoresponse,
                other => {
                    problems.push(format!("[[inbound]] {}: mapping of unknown field {other:?}", self.topic));
                    continue;
                }
            };
            *place = given.as_slice().to_vec();
        }
        Mapping::compile(&pointers).map_err(|error| problems.push(format!("[[inbound]] {}: {error}", self.topic))).ok()
    }
}

impl RawSends {
    fn meant(&self, problems: &mut Vec<String>) -> Option<SendsOutput> {
        let format = match self.format.as_str() {
            "auto" => SendFormat::Auto,
            "json" => SendFormat::Json,
            "protobuf" => SendFormat::Protobuf,
            "headers" => SendFormat::Headers,
            other => {
                problems.push(format!("[[sends]] {}: unknown format {other:?}: auto, json, protobuf or headers", self.topic));
                return None;
            }
        };
        let mut at = SendPointers::default();
        for (field, pointer) in &self.mapping {
            let place = match field.as_str() {
                "business" => &mut at.business,
                "channel" => &mut at.channel,
                "to" => &mut at.to,
                "recipient" => &mut at.recipient,
                "from" => &mut at.from,
                "category" => &mut at.category,
                "program" => &mut at.program,
                "template" => &mut at.template,
                "expires_at" => &mut at.expires_at,
                "id" => &mut at.id,
                "campaign" => &mut at.campaign,
                other => {
                    problems.push(format!("[[sends]] {}: mapping of unknown field {other:?}", self.topic));
                    continue;
                }
            };
            place.clone_from(pointer);
        }
        let decoder = SendDecoder::new(format, &at).map_err(|error| problems.push(format!("[[sends]] {}: {error}", self.topic))).ok()?;
        let name = |given: &Option<String>| given.as_deref().unwrap_or_default().into();
        Some(SendsOutput {
            input: SendsTopic { name: self.topic.as_str().into(), decoder, exempt_only: self.exempt_only },
            allowed: name(&self.allowed),
            suppressed: name(&self.suppressed),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::reply::ReplyKind;

    fn check(text: &str, verb: Verb) -> Result<Config, Problems> {
        let raw = parse(text, "stopgate.toml")?;
        raw.check(verb, "host")
    }

    #[test]
    fn a_broker_is_all_that_must_be_given() {
        let config = check("bootstrap = 'localhost:9092'", Verb::Run).expect("enough");
        assert_eq!(config.instance, "host-9470");
        assert_eq!(config.http, Some(SocketAddr::from(([127, 0, 0, 1], 9470))));
        assert_eq!((config.workers, config.fence), (Workers { detect: 1, filter: 2 }, FenceLevel::OptOuts));
        let guided = check("bootstrap = 'localhost:9092'\n[guidance]\nenabled = true", Verb::Run).expect("enough");
        assert_eq!(guided.workers, Workers { detect: 1, filter: 1 });
        assert_eq!((&*config.sends[0].allowed, &*config.sends[0].suppressed), ("sends.allowed", "sends.suppressed"));
        assert_eq!(config.warnings().len(), 1);
    }

    #[test]
    fn detect_has_a_port_of_its_own() {
        let config = check("bootstrap = 'localhost:9092'", Verb::Detect).expect("enough");
        assert_eq!(config.instance, "host-9471");
    }

    #[test]
    fn words_of_replies_are_checked_and_a_business_has_its_own() {
        let text = "[[reply]]\nkind = \"help\"\nlanguage = \"en\"\ntext = \"ask us\"\n[[business]]\nname = \"acme\"\n\
                    [[business.reply]]\nkind = \"help\"\nlanguage = \"en\"\ntext = \"ask acme\"\n";
        let config = check(&format!("bootstrap = \"b:1\"\n{text}"), Verb::Run).expect("accepted");
        assert_eq!(config.policy.texts.of(ReplyKind::Help, std::iter::empty()).1, "ask us");
        assert_eq!(config.policies["acme"].texts.of(ReplyKind::Help, ["en-GB"].into_iter()).1, "ask acme");
        let bad = "bootstrap = \"b:1\"\n[[reply]]\nkind = \"thanks\"\nlanguage = \"en\"\ntext = \"x\"\n[[reply]]\nkind = \"help\"\nlanguage = \"en\"\ntext = \" \"\n";
        let problems = check(bad, Verb::Run).err().expect("refused").0;
        assert!(problems.len() == 2 && problems[0].contains("thanks") && problems[1].contains("empty"), "{problems:?}");
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let text = r#"
            workers = 0
            passwort = "geheim"
            http = "nowhere"
            acknowledged_poison = ["1-2"]
            [kafka]
            "isolation.level" = "read_uncommitted"
            [[inbound]]
            topic = "sends"
            format = "morse"
            [[sends]]
            topic = "sends"
            mapping = { to = "no-slash" }
            [[business]]
            name = "a"
            numbers = ["+12025550100"]
            [[business]]
            name = "b"
            numbers = ["12025550100"]
        "#;
        let Err(Problems(problems)) = check(text, Verb::Run) else { panic!("accepted") };
        let shown = problems.join("\n");
        for part in [
            "unknown field passwort", "bootstrap is missing", "isolation.level", "workers", "nowhere", "1-2", "morse", "no-slash", "an alias",
            "named twice", "instance is missing",
        ] {
            assert!(shown.contains(part), "{part} is missing in:\n{shown}");
        }
    }

    #[test]
    fn without_http_an_instance_must_be_named() {
        let Err(Problems(problems)) = check("bootstrap = 'b:1'\nhttp = 'off'", Verb::Run) else { panic!("accepted") };
        assert!(problems[0].contains("--instance"), "{problems:?}");
        assert!(check("bootstrap = 'b:1'\nhttp = 'off'\ninstance = 'a'", Verb::Run).is_ok());
    }

    #[test]
    fn a_wrong_type_is_told_with_its_line_and_without_its_value() {
        let Err(problems) = parse("bootstrap = 'b:1'\nworkers = 'geheim'", "stopgate.toml") else { panic!("accepted") };
        let shown = problems.to_string();
        assert!(shown.contains("stopgate.toml:2: expected u32") && !shown.contains("geheim"), "{shown}");
    }

    #[test]
    fn secrets_print_as_stars() {
        let config = check("bootstrap = 'b:1'\n[kafka]\n'sasl.password' = 'geheim'\n'security.protocol' = 'sasl_ssl'", Verb::Run).expect("fine");
        let shown = config.to_toml();
        assert!(!shown.contains("geheim") && shown.contains("***") && shown.contains("sasl_ssl"), "{shown}");
    }

    #[test]
    fn settings_of_the_client_may_come_from_the_environment() {
        let raw = parse("bootstrap = 'b:1'\n[kafka]\n'sasl.password' = 'old'", "stopgate.toml").expect("fine");
        let variables = [("STOPGATE_KAFKA_SASL_PASSWORD", "new"), ("STOPGATE_WORKERS", "3"), ("HOME", "/")];
        let raw = raw.with_environment(variables.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!(raw.kafka.into_iter().collect::<Vec<_>>(), [("sasl.password".to_owned(), "new".to_owned())]);
    }

    #[test]
    fn what_is_given_on_the_command_line_wins() {
        let raw = parse("bootstrap = 'b:1'\nworkers = 2", "stopgate.toml").expect("fine");
        let overrides = Overrides { workers: Some(3), ..Overrides::default() };
        assert_eq!(raw.overridden(overrides).check(Verb::Run, "host").expect("fine").workers, Workers { detect: 3, filter: 3 });
    }

    #[test]
    fn the_rules_version_changes_with_what_decides_and_with_nothing_else() {
        let version = |text: &str| check(text, Verb::Run).expect("fine").rules_version("lexicon");
        let plain = version("bootstrap = 'b:1'");
        assert_eq!(plain, version("bootstrap = 'c:2'\nworkers = 4"));
        assert_ne!(plain, version("bootstrap = 'b:1'\n[templates]\nsale = 'marketing'"));
    }
}
