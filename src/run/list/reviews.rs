//! Messages that a person must judge: which wait, and what a verdict writes.

use super::Source;
use crate::config::Config;
use crate::domain::consent::{Act, ConsentState};
use crate::domain::identity::Identity;
use crate::domain::key::{Channel, ConsentKey, Subject};
use crate::domain::time::Timestamp;
use crate::record::Record;
use crate::run::readers::{Readers, Trouble};
use crate::stage::entry::{Entry, Grounds, standing};
use crate::wire::proto;
use parking_lot::Mutex;
use prost::Message;

/// What a reviewer finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Judgement {
    /// No wish to stop: ends the review and nothing else.
    Lift,
    /// A wish to stop: an opt-out of marketing, as of the message's time.
    OptOut,
}

/// A message that waits for a verdict.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Waiting {
    pub id: String,
    pub business: String,
    pub channel: String,
    pub from: Vec<String>,
    pub text: String,
    pub rule: String,
    pub occurred_at: String,
    /// By when it should be judged. Passing it changes nothing: the review goes on suppressing.
    pub deadline: String,
    pub overdue: bool,
    /// Where the message lies.
    pub source: String,
}

/// The requests that wait, in order of time. `on_key` is what stands on a key.
fn requests(
    readers: &Readers,
    config: &Config,
    threads: usize,
    on_key: &(impl Fn(&ConsentKey) -> Option<Act> + Sync),
) -> Result<Vec<proto::ReviewRequest>, Trouble> {
    let found = Mutex::new(Vec::new());
    readers.for_each(&readers.extent(&config.topics.reviews)?, threads, &|record: &Record<'_>| {
        let request = record.value.and_then(|value| proto::ReviewRequest::decode(value).ok());
        if let Some(request) = request.filter(|request| waits(config, request, on_key)) {
            found.lock().push(request);
        }
    })?;
    let mut found = found.into_inner();
    found.sort_by(|one, other| (one.occurred_at_ms, &one.id).cmp(&(other.occurred_at_ms, &other.id)));
    // A crash may write a request twice.
    found.dedup_by(|one, other| one.id == other.id);
    Ok(found)
}

/// As reviewers see it.
pub fn shown(request: &proto::ReviewRequest, now: Timestamp) -> Waiting {
    let time = |millis| Timestamp::from_millis(millis).map(crate::wire::when::to_text).unwrap_or_default();
    Waiting {
        id: request.id.clone(),
        business: request.business.clone(),
        channel: request.channel.clone(),
        from: request.from.clone(),
        text: request.text.clone(),
        rule: request.rule.clone(),
        occurred_at: time(request.occurred_at_ms),
        deadline: time(request.deadline_ms),
        overdue: request.deadline_ms < now.millis(),
        source: request.source.clone(),
    }
}

/// The keys of a request about one subject: its channel's and that of all channels, of every identity.
fn keys<'r>(config: &'r Config, request: &'r proto::ReviewRequest, subject: &'r Subject) -> impl Iterator<Item = ConsentKey> + 'r {
    let business = config.businesses.resolve(&request.business);
    let channels = Channel::parse(&request.channel).into_iter().chain([Channel::Any]);
    channels.flat_map(move |channel| {
        let identities = request.from.iter().filter_map(|from| Identity::parse(from).ok());
        let identities = identities.map(|identity| config.hashed.map_or_else(|| identity.clone(), |key| key.hash(&identity)));
        identities.map(move |identity| ConsentKey { business: business.into(), channel: channel.clone(), identity, subject: subject.clone() })
    })
}

/// Nobody has judged it, and the person has said nothing since: neither something explicit nor something that must be judged
/// itself, whose verdict then speaks for both.
fn waits(config: &Config, request: &proto::ReviewRequest, on_key: &impl Fn(&ConsentKey) -> Option<Act>) -> bool {
    let subjects = [Subject::Review, Subject::Marketing, Subject::All];
    !subjects.iter().any(|subject| {
        let mut acts = keys(config, request, subject).filter_map(|key| on_key(&key));
        acts.any(|act| act.occurred_at.millis() > request.occurred_at_ms)
    })
}

/// What a verdict writes, what suppresses first. It ends the review of this message and of those before: a later one goes on.
pub fn entries(
    config: &Config,
    request: &proto::ReviewRequest,
    judgement: Judgement,
    grounds: &Grounds,
    on_key: &impl Fn(&ConsentKey) -> Option<Act>,
) -> Vec<Entry> {
    let at = Timestamp::from_millis(request.occurred_at_ms).unwrap_or(Timestamp::EPOCH);
    let grounds = Grounds { proof: format!("review {}", request.id), ..grounds.clone() };
    let entry = |key, state, occurred_at| Entry { key, state, occurred_at, grounds: grounds.clone() };
    let mut entries = Vec::new();
    // The first channel is the message's own; that of all channels counts where the review was written there.
    let own = Channel::parse(&request.channel);
    let concerns = |key: &ConsentKey| {
        let review = ConsentKey { subject: Subject::Review, ..key.clone() };
        match key.channel == Channel::Any && own != Some(Channel::Any) {
            true => on_key(&review).is_some(),
            false => own.as_ref() == Some(&key.channel),
        }
    };
    match judgement {
        Judgement::OptOut => {
            entries.extend(keys(config, request, &Subject::Marketing).filter(concerns).map(|key| entry(key, ConsentState::OptedOut, at)))
        }
        Judgement::Lift => {}
    }
    let lifted = keys(config, request, &Subject::Review).filter(concerns);
    entries.extend(lifted.map(|key| entry(key, ConsentState::OptedIn, at.plus_millis(1))));
    entries
}

/// Everything that waits, by what stands on keys.
pub fn by(config: &Config, on_key: &(impl Fn(&ConsentKey) -> Option<Act> + Sync)) -> Result<Vec<proto::ReviewRequest>, Trouble> {
    let source = Source::new(config)?;
    requests(&source.readers, config, source.threads, on_key)
}

/// Everything that waits, by what stands now.
pub fn waiting(config: &Config) -> Result<Vec<proto::ReviewRequest>, Trouble> {
    let (source, view) = now(config)?;
    requests(&source.readers, config, source.threads, &|key| standing(&view, key))
}

/// The entries of a verdict about the request of this id; `None` where none such waits.
pub fn verdict(config: &Config, id: &str, judgement: Judgement, grounds: &Grounds) -> Result<Option<Vec<Entry>>, Trouble> {
    let (source, view) = now(config)?;
    let on_key = |key: &ConsentKey| standing(&view, key);
    let waiting = requests(&source.readers, config, source.threads, &on_key)?;
    Ok(waiting.iter().find(|request| request.id == id).map(|request| entries(config, request, judgement, grounds, &on_key)))
}

fn now(config: &Config) -> Result<(Source<'_>, crate::domain::view::ConsentView), Trouble> {
    let source = Source::new(config)?;
    let extent = source.extent()?;
    let ends = extent.ends.clone();
    let folded = source.fold(extent, &ends)?;
    Ok((source, folded.view))
}
