//! `stopgate demo --scenario FILE`: a conversation from a text file, played through both stages, and compared with what the file says
//! should follow.
//!
//! The stages' own functions run over records in memory, one after the other, at the times that the file gives: what follows is the
//! same on every machine. Kafka is absent, and so are its promises; those have tests of their own.

mod script;

use super::words::WordsError;
use super::{detect, filter};
use crate::config::{Config, Problems, Verb, parse};
use crate::domain::consent::Position;
use crate::domain::decide::Decision;
use crate::domain::guidance::GuidanceSet;
use crate::domain::time::Timestamp;
use crate::domain::view::ConsentView;
use crate::record::Record;
use crate::stage::apply::{Written, apply};
use crate::stage::detect::{Answer, Detector, Ledger, Overlay};
use crate::stage::filter::{Filter, Outcome};
use crate::wire::consent::{encode_key, encode_value};
use crate::wire::when;
use script::{Happens, Script, Step};
use serde_json::json;
use std::io::Write;

/// The business of every scenario.
const BUSINESS: &str = "acme";
const BASE: &str = "bootstrap = \"none:1\"\ninstance = \"scenario\"\nhttp = \"off\"\n";
const NUMBERS: &str = "[[business]]\nname = \"acme\"\nnumbers = [\"+12025550100\"]\n";

/// Why a scenario cannot be played.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    #[error("{0}")]
    Script(String),
    #[error("its configuration: {0}")]
    Config(#[from] Problems),
    #[error(transparent)]
    Words(#[from] WordsError),
    #[error(transparent)]
    Output(#[from] std::io::Error),
}

/// Plays a scenario and tells it, line by line. `true` where everything followed as the file says.
pub fn play(text: &str, out: &mut impl Write) -> Result<bool, ScenarioError> {
    let script = Script::parse(text).map_err(ScenarioError::Script)?;
    let business = if script.config.contains("[[business]]") { "" } else { NUMBERS };
    // What the file sets at the top level stands before the first table.
    let raw = parse(&format!("{BASE}{}\n{business}", script.config), "config")?;
    let mut stage = Stage::new(raw.check(Verb::Run, "scenario")?)?;
    let (mut same, mut day) = (true, String::new());
    for (number, step) in script.steps.iter().enumerate() {
        let time = when::to_text(step.at);
        let (today, clock) = time.split_once('T').unwrap_or((&time, ""));
        if day != today {
            writeln!(out, "{today}")?;
            today.clone_into(&mut day);
        }
        let what = step.shown.trim_start_matches(|sign: char| sign.is_ascii_digit() || "-: ".contains(sign));
        writeln!(out, "  {} {what}", clock.trim_end_matches('Z'))?;
        let followed = stage.follow(step, number as u64);
        for line in &followed {
            let is_due = step.expected.iter().any(|expected| fits(expected, line));
            same &= is_due || step.expected.is_empty();
            writeln!(out, "        {} {}", if is_due || step.expected.is_empty() { "→" } else { "✗ not expected:" }, line)?;
        }
        for expected in step.expected.iter().filter(|expected| *expected != "nothing") {
            if !followed.iter().any(|line| fits(expected, line)) {
                same = false;
                writeln!(out, "        ✗ line {}: expected and did not follow: {expected}", step.line)?;
            }
        }
        if followed.is_empty() {
            writeln!(out, "        → nothing")?;
        }
    }
    Ok(same)
}

/// Whether an expectation's words are found in what followed, in their order: `reply help` fits `reply help in en: …`.
fn fits(expected: &str, line: &str) -> bool {
    let mut rest = line;
    expected.split_whitespace().enumerate().all(|(place, word)| match rest.find(word) {
        // The first word says of what kind it is.
        Some(at) if place > 0 || at == 0 => {
            rest = rest.get(at + word.len()..).unwrap_or_default();
            true
        }
        Some(_) | None => false,
    })
}

/// Both stages and the opt-outs between them.
struct Stage {
    config: Config,
    detector: Detector,
    filter: Filter,
    view: ConsentView,
    overlay: Overlay,
    guidance: GuidanceSet,
    next: u64,
}

impl Stage {
    fn new(config: Config) -> Result<Self, ScenarioError> {
        let view = ConsentView::new(super::service::random_print_key(config.identity_key), 1);
        Ok(Self {
            detector: Detector::new(detect::rules(&config)?),
            filter: Filter::new(filter::rules(&config), view.print_key()),
            view,
            overlay: Overlay::default(),
            guidance: GuidanceSet::default(),
            next: 0,
            config,
        })
    }

    /// Lets it happen, and tells what followed.
    fn follow(&mut self, step: &Step, number: u64) -> Vec<String> {
        let (topic, body) = match &step.happens {
            Happens::Message { from, text, is_tapped, to, channel } => {
                let said = if *is_tapped { json!({ "payload": text, "text": text }) } else { json!(text) };
                let field = if *is_tapped { "button" } else { "text" };
                let mut body =
                    json!({ "id": format!("m{number}"), "from": from, "channel": channel, "received_at": when::to_text(step.at), field: said });
                match to {
                    Some(to) => body["to"] = to.as_str().into(),
                    None => body["business"] = BUSINESS.into(),
                }
                (self.config.inbound[0].0.clone(), body)
            }
            Happens::Send { to, category, program, from, channel } => {
                let mut body = json!({ "id": format!("s{number}"), "business": BUSINESS, "to": to, "category": category });
                let optional = [("program", program), ("from", from), ("channel", channel)];
                optional
                    .into_iter()
                    .filter_map(|(field, value)| Some((field, value.as_deref()?)))
                    .for_each(|(field, value)| body[field] = value.into());
                (self.config.sends[0].input.name.clone(), body)
            }
        };
        let bytes = body.to_string();
        let record = Record {
            topic: &topic,
            partition: 0,
            offset: number,
            timestamp_ms: Some(step.at.millis()),
            key: None,
            value: Some(bytes.as_bytes()),
            headers: &[],
        };
        match &step.happens {
            Happens::Message { .. } => self.message(&record),
            Happens::Send { .. } => self.send(&record),
        }
    }

    fn message(&mut self, record: &Record<'_>) -> Vec<String> {
        let read = self.detector.read(record);
        let mut told: Vec<String> = read.failures.iter().map(|(_, reason)| format!("dead-letter {}", reason.as_str())).collect();
        for finding in &read.findings {
            let answer = Ledger { view: &self.view, overlay: &mut self.overlay }.answer(finding, self.detector.rules());
            self.apply(record, &answer);
            told.extend(tell(&answer));
        }
        told
    }

    /// The log takes the records, and the view what the log holds.
    fn apply(&mut self, record: &Record<'_>, answer: &Answer) {
        for consent in &answer.consents {
            let at = Position { partition: 0, offset: self.next };
            self.next += 1;
            let (key, value) = (encode_key(&consent.key), encode_value(&consent.record));
            let written = Written { at, timestamp_ms: record.timestamp_ms, key: Some(key.as_bytes()), value: Some(&value) };
            apply(&mut self.view, &written, &self.config.businesses);
            self.view.advance(0, at.offset + 1);
            self.overlay.acknowledged(consent.number, at);
        }
        self.overlay.prune(&self.view);
    }

    fn send(&mut self, record: &Record<'_>) -> Vec<String> {
        let prepared = self.filter.prepare(record);
        let outcome = prepared.decide(&self.view, None);
        let reason = match outcome {
            Outcome::Decided(Decision::Allowed(reason)) => reason,
            Outcome::Decided(Decision::Suppressed { reason, .. }) => return vec![format!("suppressed {}", reason.as_str())],
            Outcome::DeadLetter(reason) => return vec![format!("dead-letter {}", reason.as_str())],
        };
        let mut told = vec![format!("allowed {}", reason.as_str())];
        if let Some(rules) = self.config.guidance {
            let opted_in = prepared.opted_in_at(outcome, &self.view);
            let sent_at = record.timestamp_ms.and_then(Timestamp::from_millis);
            let guided = prepared.guide(reason, sent_at, opted_in, rules.gap_days, |print| self.guidance.get(print));
            if let Some(guided) = guided {
                guided.changed.iter().for_each(|recipient| self.guidance.set(recipient.print, guided.after));
                told.extend(guided.occasion.map(|occasion| format!("guidance {}", occasion.as_str())));
            }
        }
        told
    }
}

fn tell(answer: &Answer) -> Vec<String> {
    let consents = answer.consents.iter().map(|consent| {
        let evidence = consent.record.evidence.clone().unwrap_or_default();
        format!("record {} {} on {} by {}", consent.act.state.as_str(), consent.key.subject, consent.key.channel.as_str(), evidence.rule)
    });
    let replies = answer.replies.iter().map(|(kind, reply)| format!("reply {} in {}: {}", kind.as_str(), reply.locale, reply.text));
    let feedback = answer.feedback.iter().map(|(_, feedback)| format!("feedback {}", feedback.reason));
    let review = answer.review.iter().map(|review| format!("review by {}", review.rule));
    consents.chain(replies).chain(feedback).chain(review).collect()
}
