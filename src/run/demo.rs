//! `stopgate demo`: both stages on an embedded broker, a few people, a small campaign, and what happened to each.
//!
//! What runs here is what runs in production, the broker apart: webhook bodies in, consent records, replies and
//! filtered sends out. The account is read back from the topics; nothing of it is known in advance.

use super::layout::Brokers;
use super::service;
use super::stop::Stop;
use crate::config::{Overrides, RawConfig, Verb, parse};
use crate::kafka::embedded::EmbeddedBroker;
use crate::kafka::follower::{Followed, Follower};
use crate::kafka::producer::{IdempotentProducer, Limits};
use crate::kafka::{Connection, EdgeError};
use crate::metrics::Metrics;
use crate::record::{Produce, TopicName};
use crate::wire::partition::partition_for;
use crate::wire::proto;
use prost::Message;
use serde_json::json;
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

const CONFIG: &str = include_str!("demo.toml");
const PARTITIONS: u32 = 4;
/// The demo ends by itself within ten seconds, whatever happens; stopping takes one of them.
const PATIENCE: Duration = Duration::from_secs(9);
/// When the messages of the demo were written: 2026-11-01T10:00:00Z, in seconds.
const MESSAGES_AT: i64 = 1_793_527_200;

struct Person {
    name: &'static str,
    phone: &'static str,
    writes: &'static str,
}

#[rustfmt::skip]
const PEOPLE: &[Person] = &[
    Person { name: "Ada",    phone: "12025550143",   writes: "Stop." },
    Person { name: "João",   phone: "551191234567",  writes: "SAIR" },
    Person { name: "Lucía",  phone: "5215512345678", writes: "BAJA, por favor" },
    Person { name: "Jürgen", phone: "4915112345678", writes: "abmelden" },
    Person { name: "Mei",    phone: "8613800138000", writes: "退订" },
    Person { name: "Omar",   phone: "966501234567",  writes: "إيقاف" },
    Person { name: "Bob",    phone: "12025550199",   writes: "please cancel my order 1182" },
    Person { name: "Chloé",  phone: "33612345678",   writes: "à quelle heure ouvre le magasin ?" },
];

struct Send {
    to: &'static str,
    category: &'static str,
    text: &'static str,
}

#[rustfmt::skip]
const CAMPAIGN: &[Send] = &[
    Send { to: "+12025550143",     category: "marketing", text: "Black Friday, 30 % off" },
    Send { to: "+12025550143",     category: "utility",   text: "Your parcel arrives today" },
    Send { to: "+5511991234567",   category: "marketing", text: "Oferta de novembro" },
    Send { to: "+525512345678",    category: "marketing", text: "Ofertas de noviembre" },
    Send { to: "+4915112345678",   category: "marketing", text: "Novemberangebote" },
    Send { to: "+8613800138000",   category: "marketing", text: "双十一优惠" },
    Send { to: "+966501234567",    category: "marketing", text: "عروض نوفمبر" },
    Send { to: "+12025550199",     category: "marketing", text: "Black Friday, 30 % off" },
    Send { to: "+33612345678",     category: "marketing", text: "Offres de novembre" },
];

/// Why the demo could not be shown.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error(transparent)]
    Edge(#[from] EdgeError),
    #[error(transparent)]
    Output(#[from] std::io::Error),
    #[error("the demo's own configuration: {0}")]
    Config(#[from] crate::config::Problems),
    #[error("the service ended: {0}")]
    Service(#[from] service::Failure),
    #[error("the service did not answer in time")]
    Late,
}

/// Shows it. With an address it then goes on until `stop` is asked, serves the API and the console there, and lets people
/// write and campaigns go out every now and then.
pub fn run(out: &mut impl Write, http: Option<&str>, stop: &Stop) -> Result<(), DemoError> {
    let deadline = Instant::now() + PATIENCE;
    let broker = EmbeddedBroker::start()?;
    let raw: RawConfig = parse(CONFIG, "demo.toml")?;
    let overrides = Overrides { bootstrap: Some(broker.bootstrap()), http: http.map(str::to_owned), ..Overrides::default() };
    let config = raw.overridden(overrides).check(Verb::Run, "demo")?;
    for topic in config.all_topics() {
        broker.create_topic(topic, PARTITIONS)?;
    }
    let connection = config.connection.clone();
    let service = {
        let stop = stop.clone();
        thread::spawn(move || service::run(config, Verb::Run, Brokers::Embedded, Arc::new(Metrics::new()), &stop))
    };
    let shown = show(&connection, deadline, out).and_then(|()| match http {
        Some(address) => go_on(&connection, address, out, stop),
        None => Ok(()),
    });
    stop.ask();
    let ended = service.join().unwrap_or_else(|_| Err(service::Failure::Failed("a thread panicked".to_owned())));
    shown?;
    ended?;
    Ok(())
}

fn show(connection: &Connection, deadline: Instant, out: &mut impl Write) -> Result<(), DemoError> {
    let producer = IdempotentProducer::new(connection, Limits::DEFAULT)?;
    writeln!(out, "stopgate demo: two stages, one embedded broker, {} people\n", PEOPLE.len())?;
    writeln!(out, "1. People write to Acme on WhatsApp (topic inbound-messages, Meta's webhook bodies)\n")?;
    for (number, person) in PEOPLE.iter().enumerate() {
        produce(&producer, "inbound-messages", person.phone, webhook(person, number).to_string(), number)?;
    }
    let mut opt_outs = Reader::new(connection, "opt-outs")?;
    let mut replies = Reader::new(connection, "replies")?;
    let mut rules: BTreeMap<String, (String, String)> = BTreeMap::new();
    let mut confirmed: BTreeMap<String, String> = BTreeMap::new();
    let asked_to_stop = 6;
    wait_until(deadline, || {
        opt_outs.read(|record| {
            let value = proto::ConsentRecord::decode(record.value.unwrap_or_default()).unwrap_or_default();
            let evidence = value.evidence.unwrap_or_default();
            let key = String::from_utf8_lossy(record.key.unwrap_or_default()).into_owned();
            rules.insert(evidence.provider_message_id, (evidence.rule, key));
        })?;
        replies.read(|record| {
            let reply = proto::ReplyRequest::decode(record.value.unwrap_or_default()).unwrap_or_default();
            confirmed.insert(reply.in_reply_to, reply.text);
        })?;
        Ok(rules.len() >= asked_to_stop && confirmed.len() >= asked_to_stop)
    })?;
    for (number, person) in PEOPLE.iter().enumerate() {
        writeln!(out, "   {:<7} “{}”", person.name, person.writes)?;
        match rules.get(&message_id(number)) {
            Some((rule, key)) => {
                writeln!(out, "           → opt-out by rule {rule}: {key}")?;
                if let Some(text) = confirmed.get(&message_id(number)) {
                    writeln!(out, "           → reply: {text}")?;
                }
            }
            None => writeln!(out, "           → nothing to do: no wish to stop")?,
        }
    }
    writeln!(out, "\n2. A campaign goes out (topic sends), decided at the newest state of opt-outs\n")?;
    for (number, send) in CAMPAIGN.iter().enumerate() {
        let value = json!({"id": format!("s{number}"), "business": "acme", "channel": "whatsapp", "to": send.to, "category": send.category, "text": send.text});
        produce(&producer, "sends", send.to, value.to_string(), number)?;
    }
    let mut outcomes: BTreeMap<String, String> = BTreeMap::new();
    let mut allowed = Reader::new(connection, "sends.allowed")?;
    let mut suppressed = Reader::new(connection, "sends.suppressed")?;
    wait_until(deadline, || {
        allowed.read(|record| {
            outcomes.insert(send_id(record), "allowed".to_owned());
        })?;
        suppressed.read(|record| {
            let header = |name| record.header(name).map(|value| String::from_utf8_lossy(value).into_owned()).unwrap_or_default();
            outcomes
                .insert(send_id(record), format!("suppressed: {}, by opt-outs record {}", header("stopgate-reason"), header("stopgate-cause")));
        })?;
        Ok(outcomes.len() >= CAMPAIGN.len())
    })?;
    for (number, send) in CAMPAIGN.iter().enumerate() {
        let outcome = outcomes.get(&format!("s{number}")).map_or("no outcome yet", String::as_str);
        writeln!(out, "   {:<16} {:<9} {:<26} → {outcome}", send.to, send.category, format!("“{}”", send.text))?;
    }
    let count = |wanted: &str| outcomes.values().filter(|outcome| outcome.starts_with(wanted)).count();
    writeln!(
        out,
        "\n{} messages, {} opt-outs, {} confirmations; {} sends: {} allowed, {} suppressed.",
        PEOPLE.len(),
        rules.len(),
        confirmed.len(),
        CAMPAIGN.len(),
        count("allowed"),
        count("suppressed")
    )?;
    writeln!(out, "João wrote from 551191234567 and the campaign names +5511991234567: one person, one state.")?;
    writeln!(out, "Next: `stopgate topics --bootstrap HOST:PORT`, then `stopgate run --bootstrap HOST:PORT`.")?;
    out.flush()?;
    Ok(())
}

/// What people write while the demo goes on, in turn.
const SAID: &[&str] = &[
    "please stop sending me these",
    "thanks, the parcel has come",
    "no me envíen más publicidad",
    "too many messages",
    "where is my order?",
    "pare de me mandar mensagens",
    "START",
    "bitte keine Werbung mehr",
    "can you stop by tomorrow?",
    "STOP",
];
/// How often somebody writes and a send goes out.
const PAUSE: Duration = Duration::from_millis(900);

/// Messages and sends of people who do not exist, until the process is asked to stop.
fn go_on(connection: &Connection, address: &str, out: &mut impl Write, stop: &Stop) -> Result<(), DemoError> {
    writeln!(out, "\nThe console is at http://{address}/ and the API beside it; end it with Ctrl-C.")?;
    out.flush()?;
    let producer = IdempotentProducer::new(connection, Limits::DEFAULT)?;
    for number in 0_usize.. {
        stop.sleep(PAUSE);
        if stop.is_asked() {
            return Ok(());
        }
        // 555-01xx: numbers that belong to nobody.
        let phone = format!("1202555{:04}", 100 + number * 7 % 100);
        let mut body = webhook(&Person { name: "Somebody", phone: "", writes: SAID[number % SAID.len()] }, PEOPLE.len() + number);
        let value = &mut body["entry"][0]["changes"][0]["value"];
        value["contacts"][0]["wa_id"] = phone.as_str().into();
        value["messages"][0]["from"] = phone.as_str().into();
        produce(&producer, "inbound-messages", &phone, body.to_string(), number)?;
        for recipient in 0..4 {
            let to = format!("+1202555{:04}", 100 + (number * 13 + recipient * 29) % 100);
            let id = format!("live{number}-{recipient}");
            let send = json!({"id": id, "business": "acme", "channel": "whatsapp", "to": to, "category": "marketing", "campaign": "november"});
            produce(&producer, "sends", &to, send.to_string(), number)?;
        }
    }
    Ok(())
}

fn wait_until(deadline: Instant, mut done: impl FnMut() -> Result<bool, EdgeError>) -> Result<(), DemoError> {
    while !done()? {
        if Instant::now() >= deadline {
            return Err(DemoError::Late);
        }
    }
    Ok(())
}

fn message_id(number: usize) -> String {
    format!("wamid.DEMO{number:04}")
}

fn webhook(person: &Person, number: usize) -> serde_json::Value {
    json!({"object": "whatsapp_business_account", "entry": [{"id": "900100200300400", "changes": [{"field": "messages", "value": {
        "messaging_product": "whatsapp",
        "metadata": {"display_phone_number": "12025550100", "phone_number_id": "800700600500400"},
        "contacts": [{"profile": {"name": person.name}, "wa_id": person.phone}],
        "messages": [{"from": person.phone, "id": message_id(number), "timestamp": (MESSAGES_AT + number as i64).to_string(),
                      "type": "text", "text": {"body": person.writes}}]}}]}]})
}

fn send_id(record: &Followed<'_>) -> String {
    let value: serde_json::Value = serde_json::from_slice(record.value.unwrap_or_default()).unwrap_or_default();
    value["id"].as_str().unwrap_or_default().to_owned()
}

fn produce(producer: &IdempotentProducer, topic: &str, key: &str, value: String, number: usize) -> Result<(), EdgeError> {
    let topic: TopicName = topic.into();
    let partition = partition_for(key.as_bytes(), PARTITIONS);
    producer.send(&Produce { topic, partition, key: Some(key.into()), value: Some(value.into()), headers: Vec::new() }, number)?;
    while !producer.is_idle() {
        producer.acks(Duration::from_millis(1))?;
    }
    Ok(())
}

/// Reads a topic from its beginning, again and again.
struct Reader {
    follower: Follower,
}

impl Reader {
    fn new(connection: &Connection, topic: &str) -> Result<Self, EdgeError> {
        let follower = Follower::new(connection, "demo", topic, &[0; PARTITIONS as usize])?;
        Ok(Self { follower })
    }

    fn read(&mut self, mut each: impl FnMut(&Followed<'_>)) -> Result<(), EdgeError> {
        self.follower.turn(Duration::from_millis(10), |records| records.iter().for_each(&mut each))?;
        Ok(())
    }
}
